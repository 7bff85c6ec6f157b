"""Jobs per second and worker memory beside a plain Celery app, on the same Redis kind and simulator, in one run.

    python -m tests.bench.throughput [--jobs 2000] [--large 20000] [--repeats 5]

The plain app (plain_app.py) is one task a prompt, a thread pool and one keep-alive client; it gets the best of a
sweep of concurrencies.  Both are timed from the first line handed in to the last answer stored, and take turns, so
that a noisy machine is noisy for both.  The ratio of the medians is what to read.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import orjson
import psutil
import redis

from api.embedded.redis_server import free_port
from tests.support.pool import Redis, TestPool, simulated
from tests.support.waiting import eventually

#: calls a provider takes at once, and the plain app's sweep of threads a worker
IN_FLIGHT = 128
SWEEP = (8, 16, 32, 64)
#: seconds to the simulator's first token
TTFT_S = 0.02
#: one class after the other, so that model loads can be counted
CATEGORIES = ("summarize", "classify", "code", "reason")
MODELS = ("gemma3:4b", "qwen2.5-coder:7b", "gemma4:26b")


class Simulator:
    """The simulator as a process of its own, so that it has its own core and interpreter."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        options = {"slots": 4096, "queue-limit": 100_000, "ttft-s": TTFT_S, "loaded-limit": 1}
        arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workers.simulator", "--port", str(self.port), *arguments],
            stderr=subprocess.DEVNULL,
        )
        eventually(self._answers, "the simulator answers")

    def stats(self) -> dict[str, Any]:
        """What it counted."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/sim/stats", timeout=10) as reply:
            found: dict[str, Any] = orjson.loads(reply.read())
        return found

    def reset(self) -> None:
        """Forget what is loaded and counted."""
        urllib.request.urlopen(f"http://127.0.0.1:{self.port}/sim/reset", data=b"", timeout=10).close()

    def _answers(self) -> bool:
        try:
            return bool(self.stats())
        except OSError:
            return False

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


@contextmanager
def simulator() -> Iterator[Simulator]:
    made = Simulator()
    try:
        yield made
    finally:
        made.close()


def prompt(i: int) -> str:
    return f"Please work on this text number {i} which says something short."


@contextmanager
def plain(folder: Path, url: str, workers: int, threads: int) -> Iterator[Callable[[int], float]]:
    """The plain app; gives a function jobs -> jobs per second."""
    server = Redis(folder)
    environment = os.environ | {"PLAIN_REDIS": server.url, "PLAIN_SERVER": url + "/"}
    command = [sys.executable, "-m", "celery", "-A", "tests.bench.plain_app", "worker", "-P", "threads", "-l", "error"]
    roles = [
        subprocess.Popen(
            [*command, "-c", str(threads), "-n", f"w{i}@plain", "--without-gossip", "--without-mingle"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for i in range(workers)
    ]
    try:
        yield lambda jobs: _run_plain(server, jobs, workers)
    finally:
        for role in roles:
            role.kill()
            role.wait()
        server.close()


def _run_plain(server: Redis, jobs: int, workers: int) -> float:
    from celery import Celery

    app = Celery("plain", broker=server.url, backend=server.url)
    eventually(lambda: len(app.control.ping(timeout=0.5)) == workers, "the plain workers answer", 60)
    before = _stored(server.client)
    began = time.monotonic()
    with app.producer_pool.acquire(block=True) as producer:
        for i in range(jobs):
            app.send_task("complete", args=[prompt(i)], producer=producer)
    eventually(lambda: _stored(server.client) - before >= jobs, "every plain answer is stored", 600)
    rate = jobs / (time.monotonic() - began)
    app.close()
    return rate


def _stored(client: redis.Redis) -> int:
    """Results in Redis: the plain app's database holds little else."""
    return int(client.dbsize())


@contextmanager
def offload(folder: Path, url: str, workers: int) -> Iterator[tuple[TestPool, list[psutil.Process]]]:
    """A pool with the times of production."""
    pool = TestPool(folder, simulated(url, IN_FLIGHT, kind="openai"), hurry=1, fresh=True)
    try:
        pool.beat()
        yield pool, [psutil.Process(pool.worker(node=f"n{i}").pid) for i in range(workers)]
    finally:
        pool.close()


def run_offload(pool: TestPool, jobs: int) -> tuple[float, str]:
    """Jobs per second, and the batch."""
    lines = [
        {"id": f"j{i}", "category": CATEGORIES[i * len(CATEGORIES) // jobs], "prompt": prompt(i)} for i in range(jobs)
    ]
    began = time.monotonic()
    batch = pool.submit(lines)
    eventually(lambda: pool.batch(batch).open == 0, "the batch ends", 900)
    return jobs / (time.monotonic() - began), batch


def best_threads(folder: Path, url: str, workers: int, jobs: int) -> int:
    rates = {}
    for threads in SWEEP:
        with plain(folder / f"sweep-{workers}-{threads}", url, workers, threads) as run:
            run(jobs // 10)
            rates[threads] = run(jobs)
        say(f"  plain, {workers} worker(s), {threads} threads: {rates[threads]:,.0f} jobs/s")
    return max(rates, key=lambda threads: rates[threads])


def say(text: str) -> None:
    click.echo(text)


def compare(folder: Path, url: str, workers: int, jobs: int, repeats: int) -> None:
    threads = best_threads(folder, url, workers, jobs)
    theirs, ours = [], []
    with (
        plain(folder / f"plain-{workers}", url, workers, threads) as run,
        offload(folder / f"offload-{workers}", url, workers) as (pool, _),
    ):
        run(jobs // 10)
        run_offload(pool, jobs // 10)
        for _ in range(repeats):
            theirs.append(run(jobs))
            ours.append(run_offload(pool, jobs)[0])
    a, b = statistics.median(ours), statistics.median(theirs)
    say(
        f"{workers} worker(s), {jobs:,} jobs, medians of {repeats}: Offload {a:,.0f} jobs/s, "
        f"plain Celery ({threads} threads) {b:,.0f} jobs/s, ratio {a / b:.1f}"
    )


def large(folder: Path, sim: Simulator, small: int, jobs: int) -> None:
    """One large batch: every id once, memory flat, as many model loads as models."""
    with offload(folder / "large", sim.url, 1) as (pool, (worker,)):
        run_offload(pool, small)
        sim.reset()
        before, loads = worker.memory_info().rss, sim.stats()["loads_total"]
        rate, batch = run_offload(pool, jobs)
        after, loads = worker.memory_info().rss, sim.stats()["loads_total"] - loads
        ids = Counter(line["id"] for line in pool.results(batch))
    once = ids == Counter({f"j{i}": 1 for i in range(jobs)})
    say(f"{jobs:,} jobs: {rate:,.0f} jobs/s, every id exactly once: {once}")
    say(
        f"worker memory: {before >> 20} MB after {small:,} jobs, {after >> 20} MB after {jobs:,} more, "
        f"ratio {after / before:.2f}"
    )
    say(f"model loads in it, with room for one model at a time: {loads}, for {len(MODELS)} distinct models")


@click.command()
@click.option("--jobs", default=2000, show_default=True)
@click.option("--large", "large_jobs", default=20_000, show_default=True)
@click.option("--repeats", default=5, show_default=True)
def main(jobs: int, large_jobs: int, repeats: int) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory(prefix="offload-bench-") as name:
        folder = Path(name)
        with simulator() as sim:
            for workers in (1, 2):
                compare(folder, sim.url, workers, jobs, repeats)
        with simulator() as sim:
            large(folder, sim, jobs, large_jobs)


if __name__ == "__main__":
    main()
