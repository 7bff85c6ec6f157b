"""A batch of twenty thousand jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.pool import TestPool, running, simulated
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

JOBS, SMALL = 20_000, 2_000
CATEGORIES = ("summarize", "code", "reason")


@pytest.fixture
def simulator() -> Iterator[BackgroundSimulator]:
    """A server with room for one model at a time, so that every needless change of class is a load."""
    with in_thread(SimulatorConfig(slots=512, queue_limit=100_000, loaded_limit=1, ttft_s=0.01)) as made:
        yield made


def submit(pool: TestPool, n: int) -> str:
    """A batch of n jobs over all classes, mixed."""
    jobs = (
        {"id": f"j{i}", "category": CATEGORIES[i % len(CATEGORIES)], "prompt": f"A short text, number {i}."}
        for i in range(n)
    )
    return pool.submit(jobs)


def test_twenty_thousand_jobs_end_exactly_once_in_flat_memory_with_one_load_a_model(
    tmp_path: Path, simulator: BackgroundSimulator
) -> None:
    """Every id once, memory within 1.1 of that after 2,000 jobs, and as many model loads as distinct models."""
    # a turn of two minutes: on a busy machine, too, a class is empty before another's oldest job has waited that long
    with running(tmp_path, simulated(simulator.url, in_flight=128), hurry=0.5, fresh=True) as pool:
        pool.beat()
        worker = psutil.Process(pool.worker().pid)
        pool.finished(submit(pool, SMALL), within_s=300)
        before = worker.memory_info().rss
        simulator.reset()
        batch = submit(pool, JOBS)
        results = pool.finished(batch, within_s=600)
        after = worker.memory_info().rss
    assert Counter(r["id"] for r in results) == Counter({f"j{i}": 1 for i in range(JOBS)})
    assert {r["state"] for r in results} == {"done"}
    assert simulator.stats()["loads_total"] == len(CATEGORIES)
    assert after <= 1.1 * before, (before, after)
