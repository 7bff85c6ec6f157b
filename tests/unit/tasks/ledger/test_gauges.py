"""How a ledger stands, on both databases, and that asking touches no job that has ended."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, text, update

from tasks.config import parse
from tasks.ledger import control, endings, gauges, ticks
from tasks.ledger.database import Database
from tasks.ledger.gauges import Gauges
from tasks.ledger.schema import open_ledger
from tasks.registry import Registry
from tasks.states import JobState
from tasks.tables import Batch, Job, Usage
from tasks.turns import IDLE_WINDOW, MOST_UNCLAIMED, WINDOW
from tests.support.postgres import Postgres
from tests.unit.ledgers import TIMES, Ledger, outcome

batches = Batch.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]
usage = Usage.__table__  # type: ignore[attr-defined]

REGISTRY: Registry = parse(
    """
providers:
  - name: gpu
    kind: ollama
    url: http://127.0.0.1:1
    limits: [{unit: requests, per: minute, most: 10}, {unit: tokens, per: day, most: 1000}]
classes:
  small: {serve: [{provider: gpu, model: tiny}]}
""",
    "offload.yaml",
)


@pytest.fixture(params=["sqlite_db", "postgres_db"])
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """A ledger in a file, and one in PostgreSQL."""
    made = Ledger(request.getfixturevalue(request.param))
    yield made
    made.check()


def look(ledger: Ledger) -> Gauges:
    """One look."""
    return gauges.look(ledger.db, REGISTRY.classes, REGISTRY.providers.values(), TIMES.worker_gone)


def queued(ledger: Ledger) -> dict[str, int]:
    """What waits, but for classes of which nothing does."""
    return {name: n for name, n in gauges.queued(ledger.db, REGISTRY.classes).items() if n}


def test_a_new_ledger_has_zeros(ledger: Ledger) -> None:
    """Every class of the configuration is there before its first job; a class nobody serves has its idle window."""
    found = look(ledger)
    assert set(found.out.values()) == {0}
    assert set(found.oldest.values()) == {0.0}
    assert {name for _, name in found.out} == set(REGISTRY.classes)
    assert set(found.windows.values()) == {IDLE_WINDOW}
    assert gauges.queued(ledger.db, REGISTRY.classes) == dict.fromkeys(REGISTRY.classes, 0)


def test_jobs_by_state_and_class(ledger: Ledger) -> None:
    """What waits, is out and runs; not what has ended, nor what nobody was promised."""
    me = ledger.worker(capacity=2)
    ledger.submit(20)
    ledger.submit(5, model_class="coder")
    ledger.submit(7, opened=False)
    sent = ledger.fill("small")
    held = ledger.claim(me, slices=[ledger.sender.slices[0][0]])
    ledger.record(outcome(held[0]))
    found = look(ledger)
    assert found.out[JobState.RUNNING, "small"] == len(held) - 1
    assert found.out[JobState.DISPATCHED, "small"] == sent - len(held)
    assert queued(ledger) == {"small": 20 - sent, "coder": 5}
    assert found.windows["small"] == MOST_UNCLAIMED * WINDOW * 2
    assert found.windows["coder"] == IDLE_WINDOW


def test_a_class_that_only_a_worker_knows_is_there(ledger: Ledger) -> None:
    """Nodes may have classes of their own."""
    ledger.worker("far/gpu", classes=("wide",))
    ledger.submit(3, model_class="wide")
    assert queued(ledger) == {"wide": 3}
    assert look(ledger).oldest["wide"] == 0.0


def test_the_oldest_due_job(ledger: Ledger) -> None:
    """Its wait counts from its submit, sent or not; what was tried waits from then on, and what is put off does not."""
    ledger.submit(1)
    ledger.wait(50)
    ledger.submit(1)
    ledger.wait(10)
    assert look(ledger).oldest["small"] == 60
    me = ledger.worker(capacity=4)
    ledger.fill()
    assert look(ledger).oldest["small"] == 60, "it is sent, and waits"
    first, second = ledger.claim(me)
    assert look(ledger).oldest["small"] == 0, "both run"
    ledger.record(outcome(first, JobState.QUEUED, error_code="busy", delay=30.0), outcome(second))
    assert look(ledger).oldest["small"] == 0
    ledger.wait(32)
    assert look(ledger).oldest["small"] == 2
    with ledger.db.write() as c:
        c.execute(update(jobs).where(jobs.c.id == first.id).values(queued_at=0.0))
    assert look(ledger).oldest["small"] == 0, "nobody knows"


def test_the_oldest_behind_one_that_was_tried_again(ledger: Ledger) -> None:
    """A job that went back to the head of its batch hides none that waits behind it."""
    me = ledger.worker(capacity=1)
    ledger.submit(10)
    ledger.fill()
    ledger.wait(100)
    held = ledger.claim(me)
    ledger.record(*(outcome(job, JobState.QUEUED, error_code="busy") for job in held))
    assert look(ledger).oldest["small"] == 100


def test_what_a_pause_holds_back_is_not_due(ledger: Ledger) -> None:
    """It is queued, and nobody waits for a worker."""
    batch = ledger.submit(3)
    control.pause(ledger.db, batch)
    ledger.wait(10)
    assert look(ledger).oldest["small"] == 0
    assert queued(ledger) == {"small": 3}


def test_workers_are_up_while_their_heart_beats(ledger: Ledger) -> None:
    """One that is gone is known and not up, and has no window."""
    ledger.worker("a/gpu")
    ledger.wait(TIMES.worker_gone + 1)
    ledger.worker("b/gpu")
    found = look(ledger)
    assert [(row.name, fresh) for row, fresh in found.workers] == [("a/gpu", False), ("b/gpu", True)]
    assert found.windows["small"] == MOST_UNCLAIMED * WINDOW * 4


def test_a_worker_of_two_classes_has_the_window_of_its_turn(ledger: Ledger) -> None:
    """The class that has no turn has no window."""
    ledger.worker(classes=("small", "coder"))
    ledger.submit(1, model_class="coder")
    ledger.fill("small", "coder")
    found = look(ledger).windows
    assert (found["small"], found["coder"]) == (0, MOST_UNCLAIMED * WINDOW * 4)


def test_what_is_left_of_quotas(ledger: Ledger) -> None:
    """One untouched, none used up; never below."""
    now = ledger.db.time
    rows = [("requests", "minute", now - now % 60, 4.0), ("requests", "minute", now - now % 60 - 60, 9.0)]
    with ledger.db.write() as c:
        for unit, per, began, amount in rows:
            c.execute(usage.insert().values(provider="gpu", unit=unit, per=per, began=began, amount=amount))
    assert look(ledger).quotas == {("gpu", "requests", "minute"): pytest.approx(0.6), ("gpu", "tokens", "day"): 1.0}
    with ledger.db.write() as c:
        c.execute(update(usage).values(amount=11.0))
    assert look(ledger).quotas["gpu", "requests", "minute"] == 0.0


def test_totals_grow_from_tick_to_tick(ledger: Ledger) -> None:
    """A tick's counts are of that tick; its totals are of all of them."""
    ticks.tick(ledger.db, "sweep", {"leases": 2}, {"sweeps": 1, "leases": 2})
    ledger.wait(5)
    ticks.tick(ledger.db, "sweep", {"leases": 1}, {"sweeps": 1, "leases": 1})
    assert look(ledger).ticks["sweep"] == (ledger.db.time, {"sweeps": 2, "leases": 3})
    assert ticks.counted(ledger.db, "sweep")[1]["leases"] == 1


def test_jobs_that_are_cancelled_or_expire_are_kept_count_of(ledger: Ledger) -> None:
    """They have no call row, so a total has them, by state and class."""
    first, second = ledger.submit(3), ledger.submit(2, model_class="coder")
    endings.cancel(ledger.db, first)
    endings.cancel(ledger.db, first)
    endings.end_all(ledger.db, second, JobState.EXPIRED)
    assert look(ledger).ticks[ticks.ENDED][1] == {"cancelled small": 3, "expired coder": 2}


@pytest.fixture(params=["sqlite", "postgres"])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Ten thousand jobs of one open batch that have ended, and a thousand that wait."""
    server: Postgres | None = request.getfixturevalue("postgres") if request.param == "postgres" else None
    db = open_ledger(tmp_path / "ledger.db" if server is None else server.create("full"))
    with db.write(durable=False) as c:
        of = {"id": "b", "state": "open", "created_at": 1.0, "touched_at": 1.0, "opened_at": 1.0, "deadline_at": 9e9}
        c.execute(insert(batches).values(of))
        c.execute(insert(jobs), [_job(i) for i in range(11_000)])
    if server is not None:
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
            c.execute(text("ANALYZE jobs"))
    yield db
    db.close()
    if server is not None:
        server.drop("full")


def _job(i: int) -> dict[str, Any]:
    of = {
        "batch_id": "b",
        "line": i,
        "line_id": str(i),
        "category": "plain",
        "tier": "lan_ok",
        "rank": i,
        "due_at": 0.0,
    }
    return of | {"model_class": ("small", "coder")[i % 2], "state": "queued" if i >= 10_000 else "done"}


def test_no_look_goes_through_jobs_that_have_ended(full: Database) -> None:
    """Each statement about jobs goes along an index whose entries are of the state that is asked for."""
    classes = REGISTRY.classes
    asked = list(_asked(full, lambda: (gauges.look(full, classes, [], 45.0), gauges.queued(full, classes))))
    about_jobs = [(statement, given) for statement, given in asked if re.search(r"\bjobs\b", statement)]
    assert len(about_jobs) == 1 + 2 * len(classes)
    for statement, given in about_jobs:
        with full.read() as c:
            explain = "EXPLAIN " if full.is_postgres else "EXPLAIN QUERY PLAN "
            plan = "\n".join(str(row[-1]) for row in c.exec_driver_sql(explain + statement, given))
        assert "ix_jobs_out" in plan or "ix_jobs_queue" in plan, plan
        assert not re.search(r"SCAN jobs(?! USING)|Seq Scan on jobs|uq_jobs_line", plan), plan


def _asked(db: Database, what: Callable[[], object]) -> Iterator[tuple[str, Any]]:
    """The statements of a call."""
    found: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, given: Any, *_: Any) -> None:
        found.append((statement, given))

    event.listen(db.engine, "before_cursor_execute", note)
    what()
    event.remove(db.engine, "before_cursor_execute", note)
    return iter(found)
