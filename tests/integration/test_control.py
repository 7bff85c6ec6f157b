"""Batches under control, on a pool that runs: pause, retry, dependencies, deadlines, priorities, the time left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from tasks.states import JobState
from tasks.tables import CallRow, Job
from tasks.turns import WINDOW
from tests.support.cli import jsonl
from tests.support.pool import TestPool, running, simulated
from tests.support.postgres import Postgres
from tests.support.waiting import eventually
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

calls = CallRow.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]

#: calls at once of the pool's one worker
IN_FLIGHT = 4
#: answered after so many seconds; never
SLOW, SLOWER, STUCK = "[[sim:delay=0.3]]", "[[sim:delay=1]]", "[[sim:delay=600]]"


@pytest.fixture(scope="module")
def simulator() -> Iterator[BackgroundSimulator]:
    """The module's model server."""
    with in_thread(SimulatorConfig(slots=64, loaded_limit=8)) as made:
        yield made


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def pool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, simulator: BackgroundSimulator
) -> Iterator[TestPool]:
    """A running pool on each database; nobody in it serves class `reason`."""
    server: Postgres | None = request.getfixturevalue("postgres") if request.param == "postgres" else None
    url = server.create("control") if server else None
    config = simulated(simulator.url, IN_FLIGHT)
    with running(tmp_path_factory.mktemp("control"), config, database_url=url) as made:
        made.up(serves="small,coder")
        yield made


@pytest.fixture
def pool_(pool: TestPool) -> Iterator[TestPool]:
    """The pool, with nothing to do before and after."""
    yield pool
    for row in pool.cli("batches", "--limit", "1000", "--json").json:
        if row["state"] == "open":
            pool.cli("cancel", row["id"])


def summaries(n: int, mark: str = "") -> list[dict[str, Any]]:
    return [{"id": f"j{i}", "category": "summarize", "prompt": f"Text {i}. {mark}"} for i in range(n)]


def states(pool: TestPool, batch: str) -> list[str]:
    return [line["state"] for line in pool.results(batch)]


@pytest.mark.slow
def test_pause_and_resume(pool_: TestPool) -> None:
    """Within a second nothing more of it starts; what runs finishes; after resume the rest is done."""
    batch = pool_.submit(summaries(24, SLOWER))
    eventually(lambda: pool_.batch(batch).done > 0, "some are done")
    ran = pool_.cli("pause", batch, "--json")
    assert ran.code == 0
    assert 0 < ran.json["running"] <= 3 * IN_FLIGHT
    ended = 24 - ran.json["queued"]
    eventually(lambda: pool_.batch(batch).done == ended, "what ran is done")
    assert "paused" in pool_.cli("batches").text
    status = pool_.cli("status", batch, "--json").json
    assert (status["left_s"], status["paused_at"] is not None) == (None, True)
    assert "paused" in status["left_unknown"]
    text = pool_.cli("status", batch).text
    assert "open, paused" in text
    assert f"offload resume {batch}" in text
    assert pool_.cli("pause", batch).code == 0
    other = pool_.submit(summaries(8))  # goes past it
    pool_.finished(other)
    assert pool_.batch(batch).done == ended
    assert pool_.cli("resume", batch).code == 0
    assert len(pool_.finished(batch)) == 24
    for command in ("pause", "resume"):
        again = pool_.cli(command, batch)
        assert again.code == 2
        assert "finished" in again.stderr
        assert pool_.cli(command, "batch_x").code == 5


def test_a_node_is_resumed_too(pool_: TestPool) -> None:
    """`resume` takes a node's name where it is no batch's."""
    ran = pool_.cli("resume", "here", "--json")
    assert (ran.code, ran.json) == (0, {"id": "here", "kind": "node"})


@pytest.mark.slow
def test_retry(pool_: TestPool) -> None:
    """The lines that were not done again, with the same ids; results of the first follow; twice at once is refused."""
    jobs = [
        {"id": "good", "category": "summarize", "prompt": "Fine."},
        {"id": "bad", "category": "summarize", "prompt": "Bad. [[sim:400]]"},
        {"id": "slow", "category": "summarize", "prompt": f"Slow. {STUCK}"},
    ]
    first = pool_.submit(jobs)
    eventually(lambda: pool_.batch(first).open == 1, "two have ended")
    early = pool_.cli("retry", first)
    assert early.code == 0
    assert pool_.batch(early.text).total == 1  # of an open batch: what is terminal
    pool_.finished(early.text)
    assert pool_.cli("cancel", first).code == 0
    assert pool_.cli("retry", first, "--failed", "--json").json["jobs"] == 1
    again = pool_.cli("retry", first, "--cancelled", "--priority", "5", "--deadline", "30m")
    row = pool_.batch(again.text)
    assert (row.total, row.priority, row.retry_of) == (1, 5, first)
    refused = pool_.cli("retry", first, "--cancelled")
    assert refused.code == 2
    assert again.text in refused.stderr
    assert f"{again.text} retries 1 of its lines: 1 job open" in pool_.cli("status", first).text
    assert f"retries lines of {first}" in pool_.cli("status", again.text).text
    assert f"retries {first}" in pool_.cli("batches").text
    assert [r["id"] for r in pool_.cli("status", first, "--json").json["retries"]][-1] == again.text
    goes_on = pool_.cli("cancel", first)
    assert f"offload cancel {again.text}" in goes_on.stderr
    assert pool_.cli("cancel", again.text).code == 0
    last = pool_.results(first)
    assert [(line["id"], line["state"]) for line in last] == [
        ("good", "done"),
        ("bad", "failed"),
        ("slow", "cancelled"),
    ]
    assert [line.get("retry") for line in last][::2] == [None, again.text]
    assert pool_.cli("retry", "batch_x").code == 5
    done = pool_.submit(summaries(1))
    pool_.finished(done)
    nothing = pool_.cli("retry", done)
    assert nothing.code == 2
    assert "nothing to retry" in nothing.stderr


def test_depends_on(pool_: TestPool) -> None:
    """Its jobs wait until the other has ended, and go with it when it is cancelled."""
    first = pool_.submit(summaries(1, STUCK))
    waits = pool_.cli("submit", "-", "--depends-on", first, stdin=jsonl(summaries(2))).text
    last = pool_.cli("submit", "-", "--depends-on", waits, "--depends-on", first, stdin=jsonl(summaries(2))).text
    status = pool_.cli("status", last)
    assert f"waits for {waits}, which has 2 jobs open" in status.text
    assert "time left unknown: it waits for" in status.text
    assert set(pool_.cli("status", last, "--json").json["waits_for"]) == {first, waits}
    assert f"waits for {first}" in pool_.cli("batches").text
    ran = pool_.cli("cancel", first)
    assert f"{waits} depends on it" in ran.stderr
    assert pool_.batch(last).state == "cancelled"
    assert {line["error"]["message"] for line in pool_.results(last)} <= {
        f"batch {name}, which it depends on, was cancelled" for name in (first, waits)
    }
    assert pool_.cli("submit", "-", "--depends-on", "batch_x", stdin=jsonl(summaries(1))).code == 5
    assert pool_.cli("submit", "-", "--depends-on", first, stdin=jsonl(summaries(1))).code == 2

    first = pool_.submit(summaries(4, SLOW))
    waits = pool_.cli("submit", "-", "--depends-on", first, stdin=jsonl(summaries(4))).text
    assert len(pool_.finished(waits)) == 4
    assert pool_.batch(waits).finished_at > pool_.batch(first).finished_at
    with pool_.db.read() as c:
        started = c.execute(select(calls.c.started_at).where(calls.c.batch_id == waits)).scalars().all()
    assert min(started) > pool_.batch(first).finished_at - 0.05


def test_deadlines(pool_: TestPool) -> None:
    """What is not done by its deadline ends `expired`; the status warns of it before."""
    ran = pool_.cli("submit", "-", "--deadline", "2s", stdin=jsonl(summaries(2, STUCK)))
    pool_.finished(ran.text)
    assert states(pool_, ran.text) == ["expired"] * 2
    for bad, words in (("soon", "is no time"), ("2001-01-01", "is past"), ("99999d", "ten years")):
        ran = pool_.cli("submit", "-", "--deadline", bad, stdin=jsonl(summaries(1)))
        assert ran.code == 2
        assert words in ran.stderr


@pytest.mark.slow
def test_a_high_priority_goes_first(pool_: TestPool) -> None:
    """On a busy pool 20 urgent jobs end before anything of the long batch that was not in hand when they came."""
    low = pool_.submit(summaries(300, SLOW))
    eventually(lambda: pool_.batch(low).done > 10, "the pool is busy")
    high = pool_.cli("submit", "-", "--priority", "9", stdin=jsonl(summaries(20, SLOWER))).text  # for two looks
    place = pool_.cli("status", low, "--json").json["position"]
    assert (place["batches_ahead"], place["jobs_ahead"] > 0) == (1, True)
    assert "ahead of it: " in pool_.cli("status", low).text
    pool_.finished(high)
    with pool_.db.read() as c:
        urgent = pool_.batch(high)
        meanwhile = select(jobs.c.id).where(jobs.c.batch_id == low, jobs.c.state == JobState.DONE)
        between = c.execute(meanwhile.where(jobs.c.finished_at.between(urgent.opened_at, urgent.finished_at)))
        assert len(between.all()) <= WINDOW * IN_FLIGHT + IN_FLIGHT


@pytest.mark.slow
def test_the_time_left(pool_: TestPool) -> None:
    """Unknown with the reason where nobody serves the class; else from what the class does lately."""
    unserved = pool_.submit([{"category": "reason", "prompt": "Why?"}])
    status = pool_.cli("status", unserved, "--json").json
    assert status["left_s"] is None
    assert "serves class reason" in status["left_unknown"]
    batch = pool_.submit(summaries(240, "[[sim:delay=0.1]]"))
    eventually(lambda: pool_.batch(batch).done >= 120, "half is done")
    before, left, after = time.time(), pool_.cli("status", batch, "--json").json["left_s"], time.time()
    pool_.finished(batch)
    finished = pool_.batch(batch).finished_at
    # how right it is, tests/bench/fairness.py says: this machine may be busy
    assert (finished - after) / 3 < left < 3 * (finished - before) + 1
