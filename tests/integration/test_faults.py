"""The ledger, Redis or a model breaks under a pool at work: it goes on by itself, and nothing is done twice."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from tasks.ledger import reading
from tasks.ledger.events import events
from tests.support.pool import TestPool, running, simulated
from tests.support.postgres import Postgres
from tests.support.waiting import eventually
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

pytestmark = pytest.mark.slow

#: what a model may answer with -> the job's state and the error's code
BAD_ANSWERS = {
    "nul": ("done", None),
    "badjson": ("failed", "bad_json"),
    "notjson": ("failed", "not_json"),
    "midstream-error": ("failed", "midstream_error"),
    "hang": ("failed", "total_timeout"),
    "stall": ("failed", "total_timeout"),
}


@pytest.fixture(scope="module")
def shared_simulator() -> Iterator[BackgroundSimulator]:
    """One model server."""
    with in_thread(SimulatorConfig(slots=64)) as made:
        yield made


@pytest.fixture
def simulator(shared_simulator: BackgroundSimulator) -> BackgroundSimulator:
    """The model server, as if fresh."""
    shared_simulator.reset()
    return shared_simulator


def config(simulator: BackgroundSimulator) -> dict[str, Any]:
    return simulated(simulator.url) | {"categories": {"summarize": {"attempts": 1}}}


@pytest.fixture(scope="module")
def on_postgres(
    tmp_path_factory: pytest.TempPathFactory, shared_simulator: BackgroundSimulator, postgres: Postgres
) -> Iterator[TestPool]:
    """A pool whose ledger is in PostgreSQL, with beat and a worker."""
    folder = tmp_path_factory.mktemp("faults")
    with running(folder, config(shared_simulator), database_url=postgres.create("faults")) as pool:
        pool.up()
        yield pool


@pytest.fixture(scope="module")
def on_sqlite(tmp_path_factory: pytest.TempPathFactory, shared_simulator: BackgroundSimulator) -> Iterator[TestPool]:
    """A pool whose ledger is a file, with beat."""
    with running(tmp_path_factory.mktemp("faults"), config(shared_simulator)) as pool:
        pool.beat()
        yield pool


def jobs(n: int, text: str = "Summarize this short note number", **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"j{i}", "category": "summarize", "prompt": f"{text} {i}."} | more for i in range(n)]


def states(pool: TestPool, batch: str) -> dict[str, int]:
    """How many of a batch's jobs are where, of those that have not ended."""
    return reading.waiting_by_class(pool.db, batch).get("small", {})


def assert_each_done_once(results: list[dict[str, Any]], n: int) -> None:
    assert Counter(r["id"] for r in results) == Counter({f"j{i}": 1 for i in range(n)})
    assert {r["state"] for r in results} == {"done"}


def test_a_bad_answer_ends_its_own_job_and_no_other(on_postgres: TestPool, simulator: BackgroundSimulator) -> None:
    """NUL, no JSON, silence: a terminal state with a reason for that job, and its group is recorded."""
    bad = [
        {"id": name, "category": "summarize", "prompt": f"[[sim:{name}]] Summarize this.", "timeout_s": 2}
        | ({"json": True} if name == "badjson" else {})
        for name in BAD_ANSWERS
    ]
    results = on_postgres.finished(on_postgres.submit(jobs(30) + bad))
    assert_each_done_once([r for r in results if r["id"].startswith("j")], 30)
    found = {r["id"]: (r["state"], r.get("error", {}).get("code")) for r in results if not r["id"].startswith("j")}
    assert found == BAD_ANSWERS
    assert "\0" not in str(results)


def test_results_wait_for_a_ledger_that_is_away(
    on_postgres: TestPool, simulator: BackgroundSimulator, postgres: Postgres
) -> None:
    """PostgreSQL stopped under load: what ends meanwhile is kept and committed, and nothing is restarted."""
    simulator.configure(ttft_s=0.2)
    batch = on_postgres.submit(jobs(100))
    eventually(lambda: on_postgres.batch(batch).done >= 10, "some jobs are done")
    in_flight = eventually(lambda: simulator.stats()["in_flight"], "calls are in flight")
    postgres.stop()
    eventually(lambda: simulator.stats()["in_flight"] == 0, "the calls end while the ledger is away")
    postgres.start()
    assert on_postgres.batch(batch).open > 0, "the fault must hit work in flight"
    assert_each_done_once(on_postgres.finished(batch), 100)
    assert simulator.stats()["requests"] <= 100 + in_flight, "at most those are called again"


def test_a_locked_ledger_is_waited_for(on_sqlite: TestPool, simulator: BackgroundSimulator) -> None:
    """Another process holds SQLite's lock for longer than leases are: the pool goes on when it lets go."""
    simulator.configure(ttft_s=0.2)
    worker = on_sqlite.worker()
    batch = on_sqlite.submit(jobs(60))
    eventually(lambda: on_sqlite.batch(batch).done >= 5, "some jobs are done")
    other = sqlite3.connect(str(on_sqlite.db.path), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    eventually(lambda: simulator.stats()["in_flight"] == 0, "nothing runs any more")
    other.execute("ROLLBACK")
    other.close()
    assert on_sqlite.batch(batch).open > 0, "the fault must hit work in flight"
    assert_each_done_once(on_sqlite.finished(batch), 60)
    assert worker.poll() is None
    on_sqlite.kill_workers()


def test_leases_and_deadlines_need_no_redis(on_sqlite: TestPool, simulator: BackgroundSimulator) -> None:
    """While Redis is away the sweep goes on by its own clock, says so once, and submits are accepted."""
    worker = on_sqlite.worker()
    batch = on_sqlite.submit(jobs(4, "[[sim:delay=60*1]] Summarize this note number"))
    eventually(lambda: simulator.stats()["in_flight"] == 4, "all are in flight")
    on_sqlite.redis.kill()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(Exception, match="Redis does not answer"):
        on_sqlite.submit(jobs(3), name="late", deadline=1.0)
    late = reading.recent_batches(on_sqlite.db, 1)[0].id
    eventually(lambda: on_sqlite.batch(late).expired == 3, "its deadline passes")
    eventually(lambda: states(on_sqlite, batch) == {"queued": 4}, "the leases are taken back")
    eventually(lambda: said(on_sqlite), "it is told")
    (event,) = said(on_sqlite)
    assert (event.kind, "Redis does not answer" in event.detail["trouble"]) == ("broker", True)
    on_sqlite.redis.start()
    on_sqlite.worker()
    assert_each_done_once(on_sqlite.finished(batch), 4)
    eventually(lambda: [event.kind for event in said(on_sqlite)] == ["broker", "broker_up"], "its return is told")


def said(pool: TestPool) -> list[Any]:
    """What was told of Redis."""
    with pool.db.read() as c:
        return list(c.execute(select(events).where(events.c.subject == "redis").order_by(events.c.id)).all())
