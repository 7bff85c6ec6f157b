"""Outcomes become commits: in groups when there is a crowd, at once when there is none, and never lost."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from sqlalchemy.exc import OperationalError

from tasks.ledger import database
from tasks.ledger.database import Database
from tasks.ledger.record import Outcome, record
from tasks.states import JobState
from tests.support.waiting import eventually
from tests.unit.ledgers import Ledger, call_row, outcome
from workers import recorder
from workers.recorder import GROUP_ROWS, Recorder


@dataclass
class Desk:
    """A recorder on a ledger, and the groups it wrote."""

    recorder: Recorder
    busy: threading.Event = field(default_factory=threading.Event)
    groups: list[list[Outcome]] = field(default_factory=list)

    @property
    def written(self) -> int:
        return sum(map(len, self.groups))


@contextmanager
def recording(db: Database, *, busy: bool = False) -> Iterator[Desk]:
    """A running recorder; `busy` says that other calls are in flight."""
    made = Desk(Recorder(db, lambda: not made.busy.is_set(), lambda group: made.groups.append(group)))
    if busy:
        made.busy.set()
    made.recorder.start()
    try:
        yield made
    finally:
        made.busy.clear()
        made.recorder.stop(30)


def test_at_once_when_nothing_else_is_in_flight(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single job does not wait for a group that will not come."""
    monkeypatch.setattr(recorder, "GROUP_S", 60.0)
    batch_id, _, (job,) = ledger.running(1)
    with recording(ledger.db) as desk:
        desk.recorder.put(outcome(job))
        eventually(lambda: desk.written == 1, "the result is written", 5)
    assert ledger.states(batch_id) == {"done": 1}


def test_a_crowd_is_written_in_groups(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """While calls are in flight results collect, up to the rows of one group; none is left out."""
    monkeypatch.setattr(recorder, "GROUP_S", 60.0)
    batch_id, _, held = ledger.running(2 * GROUP_ROWS + 10)
    with recording(ledger.db, busy=True) as desk:
        for job in held:
            desk.recorder.put(outcome(job))
        eventually(lambda: desk.written >= 2 * GROUP_ROWS, "two full groups are written")
    assert [len(group) for group in desk.groups] == [GROUP_ROWS, GROUP_ROWS, 10]
    assert ledger.states(batch_id) == {"done": len(held)}


def test_a_group_of_large_outputs_is_smaller(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one commit writes is bounded in bytes as well as in rows."""
    monkeypatch.setattr(recorder, "GROUP_S", 60.0)
    monkeypatch.setattr(recorder, "GROUP_BYTES", 100)
    _, _, held = ledger.running(4)
    with recording(ledger.db, busy=True) as desk:
        for job in held:
            desk.recorder.put(outcome(job, output=b"7" * 60))
        eventually(lambda: desk.written == 4, "two groups are written", 10)
    assert [len(group) for group in desk.groups] == [2, 2]


def test_a_group_is_written_when_its_time_is_over(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results do not wait for a full group."""
    monkeypatch.setattr(recorder, "GROUP_S", 0.05)
    _, _, held = ledger.running(3)
    with recording(ledger.db, busy=True) as desk:
        for job in held:
            desk.recorder.put(outcome(job))
        eventually(lambda: desk.written == 3, "the group is written")


def test_stopping_writes_what_is_left(ledger: Ledger) -> None:
    """A drain loses nothing that was handed over before it."""
    batch_id, _, held = ledger.running(20)
    with recording(ledger.db, busy=True) as desk:
        for job in held:
            desk.recorder.put(outcome(job))
    assert desk.written == 20
    assert ledger.states(batch_id) == {"done": 20}


def test_stopping_with_nothing_to_write_ends(ledger: Ledger) -> None:
    """An idle recorder ends when it is told to."""
    with recording(ledger.db) as desk:
        pass
    assert desk.groups == []
    assert not desk.recorder.is_alive()


def test_a_stale_result_is_written_like_any_other(ledger: Ledger) -> None:
    """A fenced result leaves the hand, and takes nothing from its group."""
    batch_id, _, (one, two) = ledger.running(2)
    ledger.record(outcome(one, JobState.FAILED))
    with recording(ledger.db) as desk:
        desk.recorder.put(outcome(one))
        desk.recorder.put(outcome(two))
    assert desk.written == 2
    assert ledger.states(batch_id) == {"failed": 1, "done": 1}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once."""
    monkeypatch.setattr(recorder, "LEDGER_RETRY_S", 0.01)
    monkeypatch.setattr("tasks.ledger.record.GROUP_TRIES", 1)


@pytest.mark.usefixtures("impatient")
def test_a_failing_ledger_is_outlived(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results wait until the ledger can be written, and then all of them are, once."""
    tries = []

    def fails(db: Database, group: list[Outcome]) -> int:
        tries.append(len(group))
        if len(tries) < 4:
            raise OperationalError("COMMIT", None, Exception("disk I/O error"))
        return record(db, group)

    monkeypatch.setattr(recorder, "record", fails)
    batch_id, _, held = ledger.running(3)
    with recording(ledger.db) as desk:
        for job in held:
            desk.recorder.put(outcome(job))
    assert desk.written == 3
    assert ledger.states(batch_id) == {"done": 3}
    assert len(ledger.calls()) == 3


@pytest.mark.usefixtures("impatient")
def test_a_locked_ledger_is_outlived(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer that holds the lock for longer than a group waits costs time, and nothing else."""
    batch_id, _, held = ledger.running(3)
    path = str(ledger.db.engine.url).removeprefix("sqlite:///")
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 10)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    refused: list[int] = []
    with _watched(lambda: refused.append(1)) as watch, recording(ledger.db) as desk:
        for job in held:
            desk.recorder.put(outcome(job))
        eventually(lambda: refused, "the ledger refuses")
        assert not desk.groups
        other.execute("ROLLBACK")
        eventually(lambda: desk.written == 3, "the results are written")
    other.close()
    assert watch
    assert ledger.states(batch_id) == {"done": 3}


@contextmanager
def _watched(saw: Callable[[], None]) -> Iterator[bool]:
    """Tells of every line the recorder logs of a ledger that cannot be written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder.log, "error", lambda *_, **__: saw())
        yield True


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("bad", [10**30, {}])
def test_a_result_that_cannot_be_written_does_not_stop_the_others(ledger: Ledger, bad: object) -> None:
    """One poisoned row ends as `unrecordable`; its group, and what comes after, is recorded."""
    batch_id, _, held = ledger.running(4)
    with recording(ledger.db, busy=True) as desk:
        for n, job in enumerate(held[:3]):
            desk.recorder.put(outcome(job, served_model=bad if n == 1 else "m", call=call_row(job)))
        eventually(lambda: desk.written == 3, "the group is written", 10)
        desk.recorder.put(outcome(held[3]))
    assert [(j.state, j.error_code) for j in ledger.jobs(batch_id)] == [
        ("done", None),
        ("failed", "unrecordable"),
        ("done", None),
        ("done", None),
    ]


def test_names_and_words_of_a_server_are_stored_whatever_they_hold(ledger: Ledger) -> None:
    """NUL and lone surrogates, which no database takes as text, are escaped; the answer counts."""
    batch_id, _, (good, bad) = ledger.running(2)
    with recording(ledger.db) as desk:
        call = call_row(good) | {"model_served": "m\0", "finish_reason": "\ud800"}
        desk.recorder.put(outcome(good, served_model="m\0\ud800", call=call))
        desk.recorder.put(outcome(bad, JobState.FAILED, error_message="it said \0", call=call_row(bad)))
    assert [(j.state, j.served_model, j.error_message) for j in ledger.jobs(batch_id)] == [
        ("done", r"m\u0000\ud800", None),
        ("failed", None, r"it said \u0000"),
    ]
    assert [c.model_served for c in ledger.calls(job_id=good.id)] == [r"m\u0000"]


def test_a_spool_is_full_only_while_the_ledger_is_away(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that wait for the ledger are counted until they are written; beyond the bound nothing more may start."""
    monkeypatch.setattr(recorder, "LEDGER_RETRY_S", 0.01)
    monkeypatch.setattr(recorder, "SPOOL_BYTES", 3 * recorder.OUTCOME_BYTES + 300)
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 10)
    _, _, held = ledger.running(3)
    other = sqlite3.connect(str(ledger.db.path), isolation_level=None)
    with recording(ledger.db) as desk:
        other.execute("BEGIN IMMEDIATE")
        for job, full in zip(held, (False, False, True), strict=True):
            desk.recorder.put(outcome(job, output=b"7" * 100))
            assert desk.recorder.full is full
        other.execute("ROLLBACK")
        eventually(lambda: not desk.recorder.full and desk.written == 3, "the results are written")
    other.close()


def test_groups_are_told_after_their_commit(ledger: Ledger) -> None:
    """A job leaves the hand only when its result is in the ledger."""
    _, _, held = ledger.running(3)
    seen: list[list[str]] = []
    made = Recorder(ledger.db, lambda: True, lambda group: seen.append([ledger.job(o.job_id).state for o in group]))
    made.start()
    for job in held:
        made.put(outcome(job))
    made.stop(30)
    assert [state for group in seen for state in group] == ["done"] * 3


def test_results_handed_over_by_many_threads_all_arrive(ledger: Ledger) -> None:
    """The loop, the drain and the heartbeat may all put."""
    batch_id, _, held = ledger.running(40)
    began = time.monotonic()
    with recording(ledger.db) as desk:
        threads = [threading.Thread(target=desk.recorder.put, args=(outcome(job),)) for job in held]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert desk.written == 40
    assert ledger.states(batch_id) == {"done": 40}
    assert time.monotonic() - began < 30
