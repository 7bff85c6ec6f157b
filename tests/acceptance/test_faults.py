"""What a worker does when the ground it stands on gives way; every fault at once, and by chance, is tests/chaos."""

from __future__ import annotations

import json
import re
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from tasks.settings import Times
from tasks.tables import Job
from tests.chaos.proxy import Proxy, Wire
from tests.support.pool import TestPool, running, simulated
from tests.support.postgres import Postgres
from tests.support.waiting import eventually
from workers.process import THREADS
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread
from workers.watchdog import EX_SOFTWARE

#: of the test that measures: a busy machine takes a second here and there
SLOWER = 3
TIMES = Times().divided(SLOWER)

#: a model that takes the worker with it when it is asked for it
KILLER = """#!{python}
import os, signal, sys
if "KILLER" in sys.stdin.read():
    os.kill(os.getppid(), signal.SIGKILL)
print("a short summary of what was said")
"""

jobs_table = Job.__table__  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    """Where proxies run."""
    made = Wire()
    yield made
    made.close()


@pytest.fixture
def simulator() -> Iterator[BackgroundSimulator]:
    """The model server."""
    with in_thread(SimulatorConfig(slots=64)) as made:
        yield made


def jobs(n: int, text: str = "Summarize this short note number") -> list[dict[str, Any]]:
    return [{"id": f"j{i}", "category": "summarize", "prompt": f"{text} {i}."} for i in range(n)]


def assert_each_once(results: list[dict[str, Any]], n: int) -> None:
    assert Counter(r["id"] for r in results) == Counter({f"j{i}": 1 for i in range(n)})


@contextmanager
def supervised(pool: TestPool, **environment: str) -> Iterator[list[int]]:
    """A worker that is started again whenever it ends; the statuses with which it ended."""
    ended: list[int] = []
    over = threading.Event()
    worker = pool.worker(**environment)

    def keep() -> None:
        role = worker
        while not over.wait(0.05):
            if (status := role.poll()) is not None:
                ended.append(status)
                role = pool.start("worker", "--provider", "sim", "--node", "here", **environment)

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield ended
    finally:
        over.set()
        thread.join()


def test_a_deaf_worker_ends_and_another_goes_on(tmp_path: Path, simulator: BackgroundSimulator, wire: Wire) -> None:
    """Its connections to Redis died unnoticed: a fresh one shows what waits, and it ends for its supervisor."""
    simulator.configure(ttft_s=0.2)
    with running(tmp_path, simulated(simulator.url)) as pool:
        proxy = Proxy(wire, pool.redis.url)
        pool.beat()
        with supervised(pool, OFFLOAD_REDIS_URL=proxy.url) as ended:
            batch = pool.submit(jobs(200))
            eventually(lambda: pool.batch(batch).done >= 10, "some jobs are done")
            proxy.half_open()
            assert pool.batch(batch).open > 0, "the fault must hit work in flight"
            assert_each_once(pool.finished(batch, 90), 200)
        assert ended[:1] == [EX_SOFTWARE]
        proxy.close()


def test_a_worker_cut_off_from_the_ledger_closes_its_calls_in_time(
    tmp_path: Path, simulator: BackgroundSimulator, postgres: Postgres, wire: Wire
) -> None:
    """Nobody else may start a job while the first still runs it; the worker ends, and what it had is done elsewhere."""
    url = postgres.create("cut_off")
    with running(tmp_path, simulated(simulator.url), database_url=url, hurry=SLOWER) as pool:
        proxy = Proxy(wire, url)
        pool.beat()
        first = pool.worker(OFFLOAD_DATABASE_URL=proxy.url)
        batch = pool.submit(jobs(8, "[[sim:delay=60*1]] Summarize this note number"))
        eventually(lambda: simulator.stats()["in_flight"] == 8, "all are in flight")
        proxy.hole()
        began = time.monotonic()
        eventually(lambda: simulator.stats()["in_flight"] == 0, "the calls are closed", 2 * TIMES.lease)
        assert time.monotonic() - began < TIMES.lease, "before the leases were over"
        pool.worker(node="there")
        assert_each_once(pool.finished(batch), 8)
        assert first.wait(30) == EX_SOFTWARE, "its heartbeat hangs in one statement"
        assert simulator.stats()["requests"] == 16, "each job was called once more"
        proxy.close()


def test_a_worker_cut_off_from_the_ledger_leaves_the_queue_to_others(
    tmp_path: Path, simulator: BackgroundSimulator, postgres: Postgres, wire: Wire
) -> None:
    """What it takes and cannot claim waits until it is sent again: it is no more than it had taken before it knew."""
    url = postgres.create("leaves_the_queue")
    simulator.configure(ttft_s=0.3)
    with running(tmp_path, simulated(simulator.url), database_url=url) as pool:
        proxy = Proxy(wire, url)
        pool.beat()
        pool.worker(OFFLOAD_DATABASE_URL=proxy.url)
        other = pool.worker(node="there")
        batch = pool.submit(jobs(400))
        eventually(lambda: pool.batch(batch).done >= 10, "some jobs are done")
        proxy.cut()
        assert_each_once(pool.finished(batch, 90), 400)
        untaken = set(re.findall(r"a slice could not be claimed yet.*slice=(\w+)", pool.log.read_text()))
        assert 0 < len(untaken) <= 3 * THREADS, "those in its threads, those received, and those received on the way"
        proxy.heal()
        other.terminate()
        assert_each_once(pool.finished(pool.submit(jobs(40))), 40)
        proxy.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_job_that_kills_its_workers_is_found_and_fails_alone(tmp_path: Path, postgres: Postgres, kind: str) -> None:
    """Suspects run in halves, then alone; after three workers that died of it alone it is poison, and no other is."""
    program = tmp_path / "model"
    program.write_text(KILLER.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    config = {
        "providers": [{"name": "sim", "kind": "command", "command": [str(program)], "reach": "local", "in_flight": 4}],
        "classes": {"small": {"serve": [{"provider": "sim", "model": "m"}]}},
    }
    url = postgres.create("poison") if kind == "postgres" else None
    with running(tmp_path, config, database_url=url) as pool:
        pool.beat()
        with supervised(pool) as ended:
            lines = jobs(20)
            lines[3]["prompt"] = "KILLER"
            batch = pool.submit(lines)
            results = pool.finished(batch, 120)
        assert_each_once(results, 20)
        assert {r["id"]: r["error"]["code"] for r in results if r["state"] != "done"} == {"j3": "poison"}
        assert len(ended) <= 6, "it is found by halves"
        with pool.db.read() as c:
            alone = c.execute(select(func.sum(jobs_table.c.crashes_alone))).scalar()
        assert alone == 3
        assert json.dumps(results).count("KILLER") == 0
