"""How long 100 jobs take beside 10,000 of the same class, and how right the time left is: ratios, nothing asserted.

    python -m tests.bench.fairness [--ledger sqlite|postgres|both] [--repeats 3]

Real Redis, real worker processes, the simulator as a process of its own, the times of production.  Jobs of both batches
take equally long: with half of every worker the 100 would take about twice their time alone, and what they wait for
their first turn besides.  The time left is asked for when 20, 50 and 80 % of a batch, alone in the pool, have ended,
and held against the truth.
"""

from __future__ import annotations

import functools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from sqlalchemy import func, select

from api.use_cases.outlook import outlook
from tasks.ledger import control, endings
from tasks.tables import IS_OUT, Job
from tests.bench.throughput import Simulator, say, simulator
from tests.support.pool import TestPool, running, simulated
from tests.support.postgres import Postgres
from tests.support.waiting import eventually

jobs = Job.__table__  # type: ignore[attr-defined]

WORKERS = 2
MANY, FEW = 10_000, 100
#: jobs of the batch whose end is guessed, and where
STEADY, SHARES = 1_000, (0.2, 0.5, 0.8)


@dataclass(frozen=True)
class Load:
    """in_flight: calls at once of each worker; call_s: seconds of a call, between half and one and a half of it."""

    in_flight: int
    call_s: float

    def jobs(self, n: int) -> list[dict[str, Any]]:
        """So many, whose calls take different times, the same in every run."""
        draw = random.Random(n)
        times = (self.call_s * draw.uniform(0.5, 1.5) for _ in range(n))
        return [
            {"category": "summarize", "prompt": f"Work on text number {i}. [[sim:delay={seconds:.3f}]]"}
            for i, seconds in enumerate(times)
        ]


LOADS = (Load(4, 0.4), Load(8, 0.3), Load(32, 1.0))


@contextmanager
def pool_of(folder: Path, sim: Simulator, load: Load, url: str | None) -> Iterator[TestPool]:
    """A pool of WORKERS workers with nothing to do."""
    config = simulated(sim.url, load.in_flight, kind="openai")
    with running(folder, config, hurry=1, database_url=url, fresh=True) as pool:
        pool.beat()
        for i in range(WORKERS):
            pool.worker(node=f"n{i}")
        took(pool, pool.submit(load.jobs(4 * load.in_flight)))  # everything is imported and connected
        yield pool


def took(pool: TestPool, batch: str) -> float:
    """Seconds from a batch's opening to its end."""
    eventually(lambda: pool.batch(batch).finished_at, "the batch ends", 900)
    row = pool.batch(batch)
    return float(row.finished_at - row.opened_at)


def nothing_runs(pool: TestPool) -> bool:
    """Whether no job is out."""
    with pool.db.read() as c:
        return c.execute(select(func.count()).select_from(jobs).where(IS_OUT)).scalar() == 0


def ended_beside(pool: TestPool, few: str, many: str) -> int:
    """Jobs of `many` that ended from the opening of `few` to its end; no noise of the machine is in it."""
    row = pool.batch(few)
    while_open = jobs.c.finished_at.between(row.opened_at, row.finished_at)
    with pool.db.read() as c:
        query = select(func.count()).select_from(jobs).where(jobs.c.batch_id == many, while_open)
        return int(c.execute(query).scalar_one())


def has_done(pool: TestPool, batch: str, n: float) -> bool:
    """Whether so many jobs of a batch are done."""
    return bool(pool.batch(batch).done >= n)


def fairness(pool: TestPool, load: Load, repeats: int) -> None:
    """Print the few's time beside the many as a multiple of their time alone, taken in turns on a noisy machine."""
    many = pool.submit(load.jobs(MANY))
    alone, beside, meanwhile = [], [], []
    for _ in range(repeats):
        control.pause(pool.db, many)
        eventually(functools.partial(nothing_runs, pool), "the pool is idle", 120)
        alone.append(took(pool, pool.submit(load.jobs(FEW))))
        control.resume(pool.db, many)
        pool.pool.dispatch()
        enough = pool.batch(many).done + 10 * load.in_flight
        eventually(functools.partial(has_done, pool, many, enough), "the pool is busy", 120)
        few = pool.submit(load.jobs(FEW))
        beside.append(took(pool, few))
        meanwhile.append(ended_beside(pool, few, many))
    endings.cancel(pool.db, many)
    a, b = statistics.median(alone), statistics.median(beside)
    each = ", ".join(f"{x / y:.2f}" for x, y in zip(beside, alone, strict=True))
    say(f"  {FEW} jobs: alone {a:.2f} s, beside {MANY:,} {b:.2f} s, medians: {b / a:.2f} times (each: {each})")
    say(f"  of the {MANY:,} ended meanwhile: {', '.join(map(str, meanwhile))}")


def time_left(pool: TestPool, load: Load) -> None:
    """Print the guesses of a steady batch against the truth."""
    batch = pool.submit(load.jobs(STEADY))
    guesses: list[tuple[float, float | None]] = []
    for share in SHARES:
        eventually(functools.partial(has_done, pool, batch, share * STEADY), "it goes on", 900)
        guesses.append((time.time(), outlook(pool.pool, pool.batch(batch)).left_s))
    took(pool, batch)
    end = pool.batch(batch).finished_at
    words = [
        f"at {share:.0%} {left:.1f} s, was {end - at:.1f} s ({left / (end - at) - 1:+.0%})"
        for share, (at, left) in zip(SHARES, guesses, strict=True)
        if left is not None
    ]
    say(f"  time left of {STEADY:,} jobs: {'; '.join(words)}")


@click.command()
@click.option("--ledger", type=click.Choice(["sqlite", "postgres", "both"]), default="both", show_default=True)
@click.option("--repeats", default=3, show_default=True)
def main(ledger: str, repeats: int) -> None:
    """Print the figures."""
    for kind in ("sqlite", "postgres") if ledger == "both" else (ledger,):
        server = Postgres() if kind == "postgres" else None
        try:
            for load in LOADS:
                say(f"{kind}, {WORKERS} workers of {load.in_flight} calls at once, {load.call_s} s a call:")
                url = server.create(f"fairness_{load.in_flight}") if server else None
                with (
                    tempfile.TemporaryDirectory(prefix="offload-bench-") as folder,
                    simulator() as sim,
                    pool_of(Path(folder), sim, load, url) as pool,
                ):
                    fairness(pool, load, repeats)
                    time_left(pool, load)
        finally:
            if server:
                server.close()


if __name__ == "__main__":
    main()
