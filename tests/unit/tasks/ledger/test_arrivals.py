"""Every call and every audit is read once, on both databases, whatever order their transactions end in."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, insert

from tasks.cursors import Cursor
from tasks.ledger import arrivals
from tasks.tables import Audit, CallRow
from tests.unit.databases import ClockedDatabase
from tests.unit.ledgers import Ledger

audits = Audit.__table__  # type: ignore[attr-defined]
calls = CallRow.__table__  # type: ignore[attr-defined]

CALL = {
    "job_id": 0,
    "batch_id": "",
    "fence": 0,
    "category": "plain",
    "model_class": "small",
    "provider": "gpu",
    "node": "node",
    "model_asked": "m",
    "started_at": 1.0,
}


@pytest.fixture(params=["sqlite_db", "postgres_db"])
def ledger(request: pytest.FixtureRequest) -> Ledger:
    """A ledger in a file, and one in PostgreSQL."""
    return Ledger(request.getfixturevalue(request.param))


class Reader:
    """Looks, and keeps what it found."""

    def __init__(self, db: ClockedDatabase) -> None:
        self.db = db
        self.now = 0.0
        self.cursor: Cursor = arrivals.begin(db, self.now)
        self.found: Counter[int] = Counter()

    def look(self) -> list[int]:
        """The ids that are new."""
        self.now += 1
        new: list[int] = []
        for rows, cursor in arrivals.new_calls(self.db, self.cursor, self.now):
            new += [row.id for row in rows]
            self.cursor = cursor
        self.found.update(new)
        return new


def put(c: Connection, n: int = 1, **more: Any) -> list[int]:
    """So many calls; their ids."""
    rows = [CALL | more for _ in range(n)]
    return list(c.execute(insert(calls).returning(calls.c.id), rows).scalars())


def test_calls_of_before_are_not_read(ledger: Ledger) -> None:
    """A reader begins behind what is there, and reads each later one once."""
    with ledger.db.write() as c:
        put(c, 3)
    reader = Reader(ledger.db)
    assert reader.look() == []
    with ledger.db.write() as c:
        there = put(c, 5)
    assert reader.look() == there
    assert reader.look() == []


def test_many_calls_are_read_in_pages(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a long pause no page holds more than its rows, and none is left out."""
    monkeypatch.setattr(arrivals, "PAGE", 10)
    reader = Reader(ledger.db)
    with ledger.db.write() as c:
        there = put(c, 35)
    pages = [len(rows) for rows, _ in arrivals.new_calls(ledger.db, reader.cursor, 1.0)]
    assert pages == [10, 10, 10, 5]
    assert reader.look() == there


def test_a_reader_that_stopped_between_pages_goes_on(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is behind the last cursor comes again; what is before it does not."""
    monkeypatch.setattr(arrivals, "PAGE", 10)
    reader = Reader(ledger.db)
    with ledger.db.write() as c:
        there = put(c, 25)
    _, reader.cursor = next(arrivals.new_calls(ledger.db, reader.cursor, 1.0))
    assert reader.look() == there[10:]


def test_a_ledger_that_begins_anew_is_read_from_there(ledger: Ledger) -> None:
    """Restored from a backup its ids are lower: nothing of it counts, what comes then does."""
    with ledger.db.write() as c:
        put(c, 9)
    reader = Reader(ledger.db)
    ledger.db.anew()
    with ledger.db.write() as c:
        put(c, 2)
    assert reader.look() == []
    with ledger.db.write() as c:
        there = put(c, 2)
    assert reader.look() == there


def test_ids_that_are_committed_late_are_found(postgres_db: ClockedDatabase) -> None:
    """A transaction that took its ids first and commits last is read when it does; one that is undone never."""
    ledger = Ledger(postgres_db)
    with ledger.db.engine.connect() as slow, ledger.db.engine.connect() as undone:
        early, lost = put(slow, 2), put(undone, 3)
        with ledger.db.write() as c:
            between = put(c, 2)
        reader = Reader(ledger.db)  # it begins while those are open
        with ledger.db.write() as c:
            later = put(c, 1)
        assert reader.look() == later
        slow.commit()
        undone.rollback()
        assert reader.look() == early
    assert reader.look() == []
    assert set(between) | set(lost) == set(range(min(lost), max(between) + 1))


@pytest.mark.parametrize("seed", range(5))
def test_no_order_of_commits_loses_a_call(postgres_db: ClockedDatabase, seed: int) -> None:
    """Several transactions that write by turns and end in any order, some undone, with looks between."""
    ledger, chance = Ledger(postgres_db), random.Random(seed)
    reader = Reader(ledger.db)
    committed: list[int] = []
    connections = [ledger.db.engine.connect() for _ in range(5)]
    open_ids: dict[int, list[int]] = {n: [] for n in range(5)}
    try:
        for _ in range(120):
            n = chance.randrange(5)
            match chance.choice(("put", "put", "commit", "undo", "look")):
                case "put":
                    open_ids[n] += put(connections[n], chance.randint(1, 3))
                case "commit":
                    connections[n].commit()
                    committed += open_ids[n]
                    open_ids[n] = []
                case "undo":
                    connections[n].rollback()
                    open_ids[n] = []
                case "look":
                    reader.look()
    finally:
        for connection in connections:
            connection.close()
    reader.look()
    assert reader.found == Counter(committed)


def judged(ledger: Ledger, *at: float) -> Iterator[int]:
    """Audits that were judged at these times."""
    for when in at:
        (job,) = ledger.jobs(ledger.submit(1))
        row = {"job_id": job.id, "batch_id": job.batch_id, "stratum": "s", "category": "plain", "model_class": "small"}
        row |= {"model": "m", "probability": 1.0, "state": "judged", "created_at": 1.0, "verdict": "agree"}
        with ledger.db.write() as c:
            yield int(c.execute(insert(audits).values(row | {"judged_at": when}).returning(audits.c.id)).scalar_one())


def test_audits_are_read_once(ledger: Ledger) -> None:
    """By when they were judged, also where that is a little before the last look."""
    list(judged(ledger, ledger.db.time - 5))
    seen = arrivals.begin_judged(ledger.db)
    assert arrivals.newly_judged(ledger.db, seen)[0] == []
    ledger.wait(10)
    there = list(judged(ledger, ledger.db.time, ledger.db.time - 30))
    new, seen = arrivals.newly_judged(ledger.db, seen)
    assert sorted(row.id for row in new) == there
    assert {(row.category, row.verdict) for row in new} == {("plain", "agree")}
    assert arrivals.newly_judged(ledger.db, seen)[0] == []
