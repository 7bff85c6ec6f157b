"""A pool made of real parts: its own Redis server, its own ledger, its roles as processes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
import yaml

from api.embedded import redis_server
from api.use_cases.pool import Pool
from api.use_cases.submitting import Request, submit
from tasks.ledger import reading, ticks
from tasks.ledger.database import Database
from tasks.settings import Settings
from tests.support.cli import Ran, jsonl, offload
from tests.support.nursery import Role, child, started
from tests.support.waiting import eventually

#: recovery runs this many times faster than in production, all times alike
HURRY = 10


class Redis:
    """A real server on a free port."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._server = redis_server.prepare(folder, folder)
        self.url = self._server.url
        self.client: redis.Redis = redis.Redis.from_url(self.url, socket_timeout=5)
        self.start()

    def start(self) -> None:
        """Start it, with what it kept on disk."""
        self.process = subprocess.Popen(self._server.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(self._answers, "Redis answers")

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def close(self) -> None:
        """End it."""
        self.client.close()
        self.kill()


class TestPool:
    """The roles as processes of their own, all ended with the pool. fresh: none is a fork (support/nursery.py)."""

    __test__ = False

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        hurry: float = HURRY,
        redis: Redis | None = None,
        database_url: str | None = None,
        fresh: bool = False,
    ) -> None:
        self.home = folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "offload.yaml").write_text(yaml.safe_dump(dict(config)))
        self._own_redis = redis is None
        self.redis = redis or Redis(folder / "redis")
        self.environment = clean_environment() | {
            "OFFLOAD_HOME": str(self.home),
            "OFFLOAD_REDIS_URL": self.redis.url,
            "OFFLOAD_TIME_DIVISOR": str(hurry),
            "OFFLOAD_NODE": "here",
        }
        if database_url is not None:
            self.environment["OFFLOAD_DATABASE_URL"] = database_url
        self._fresh = fresh
        self.log = folder / "roles.log"
        self._processes: list[Role] = []
        self._workers: list[Role] = []
        self.pool = Pool(
            Settings(
                home=self.home, redis_url=self.redis.url, database_url=database_url, time_divisor=hurry, node="here"
            )
        )

    @property
    def db(self) -> Database:
        """The ledger."""
        return self.pool.db

    def start(self, *arguments: str, **environment: str) -> Role:
        """Start a role: `worker --provider sim`, `beat` …"""
        said = self.environment | environment
        process = started(arguments, said, self.log) if self._fresh else child(arguments, said, self.log)
        self._processes.append(process)
        return process

    def worker(self, provider: str = "sim", node: str = "here", serves: str | None = None, **environment: str) -> Role:
        """Start a worker and wait until it takes work."""
        only = ("--serves", serves) if serves else ()
        process = self.start("worker", "--provider", provider, "--node", node, *only, **environment)
        self._workers.append(process)
        name = f"{node}/{provider}"
        eventually(lambda: self._consumes(name, process.pid), f"{name} takes work", 60)
        return process

    def kill_workers(self) -> None:
        """kill -9 of every worker there is."""
        for process in self._workers:
            process.kill()
            process.wait()
        self._workers.clear()

    def _consumes(self, name: str, pid: int) -> bool:
        return any(w.name == name and w.pid == pid and w.health == "healthy" for w in reading.all_workers(self.db))

    def beat(self) -> Role:
        """Start beat and wait for its first sweep."""
        process = self.start("beat")
        self._sweeps()
        return process

    def _sweeps(self) -> None:
        eventually(lambda: (ticks.last_tick(self.db, "sweep") or 1e9) < 5, "beat sweeps", 60)

    def up(self, **worker: str) -> Role:
        """Start beat and a worker side by side and wait for both; the worker."""
        self.start("beat")
        process = self.worker(**worker)
        self._sweeps()
        return process

    def cli(self, *arguments: str, stdin: bytes = b"") -> Ran:
        """Run a command in this process."""
        return offload(self.environment, *arguments, stdin=stdin)

    def submit(self, jobs: Iterable[Mapping[str, Any]], **request: Any) -> str:
        """Submit jobs as a file would be; returns the batch's id once they are dispatched."""
        done = submit(self.pool, io.BytesIO(jsonl(jobs)), Request(**request))
        self.pool.dispatch()
        return done.batch_id

    def batch(self, batch_id: str) -> Any:
        """The batch's row."""
        return reading.batch(self.db, batch_id)

    def finished(self, batch_id: str, within_s: float = 60.0) -> list[dict[str, Any]]:
        """Wait for a batch's end; its result lines."""
        eventually(lambda: self.batch(batch_id).open == 0, f"{batch_id} ends", within_s)
        return self.results(batch_id)

    def results(self, batch_id: str) -> list[dict[str, Any]]:
        """The result lines there are."""
        return [json.loads(line) for line in reading.results(self.db, batch_id)]

    def close(self) -> None:
        """End everything."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        if self._own_redis:
            self.redis.close()
        self.db.close()


def clean_environment() -> dict[str, str]:
    """The environment without anything of Offload's."""
    return {k: v for k, v in os.environ.items() if not k.startswith("OFFLOAD_")}


def simulated(url: str, in_flight: int = 8, **provider: Any) -> dict[str, Any]:
    """A configuration in which the simulator at `url` serves every class as provider `sim`."""
    models = {"small": "gemma3:4b", "coder": "qwen2.5-coder:7b", "reason": "gemma4:26b", "embed": "bge-m3"}
    return {
        "providers": [
            {"name": "sim", "kind": "ollama", "url": url, "reach": "local", "in_flight": in_flight} | provider
        ],
        "classes": {name: {"serve": [{"provider": "sim", "model": model}]} for name, model in models.items()},
    }


@contextmanager
def running(
    folder: Path,
    config: Mapping[str, Any],
    *,
    hurry: float = HURRY,
    redis: Redis | None = None,
    database_url: str | None = None,
    fresh: bool = False,
) -> Iterator[TestPool]:
    """A pool for the length of a `with` block; no role runs yet. redis: one that outlives it; fresh: see TestPool."""
    pool = TestPool(folder, config, hurry, redis, database_url, fresh)
    try:
        yield pool
    finally:
        pool.close()
