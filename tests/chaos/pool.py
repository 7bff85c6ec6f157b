"""The pool under test: real servers, nodes that share nothing but two addresses, and what keeps their roles running.

small1, small2   two workers of class `small`; each has a model server of its own
big              one worker of class `big` with hundreds of calls in flight
risky            one worker of class `risky`, whose provider is a program that kills its worker where a job says so
beat             the scheduler
up               a supervisor (`offload up`) with a beat and a worker of its own, while a strike wants one
"""

from __future__ import annotations

import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from api.use_cases.pool import Pool
from tasks.ledger import reading, ticks
from tasks.ledger.database import Database
from tasks.settings import Settings, Times
from tests.chaos.ears import PostgresEar, RedisEar, Snare
from tests.chaos.proxy import Proxy, Wire
from tests.chaos.roles import Role
from tests.support.nursery import Nursery
from tests.support.pool import Redis, clean_environment
from tests.support.postgres import Postgres
from tests.support.servers import Server
from tests.support.waiting import eventually

#: seconds, divided, to the first token: long enough that work is always in flight, short enough for many jobs
TTFT_S = 3.0
#: calls at once of an ordinary worker, and of the big one
IN_FLIGHT, BIG_IN_FLIGHT = 4, 256
#: seconds between two looks of whoever waits or watches, divided: a pool should not feel them
LOOK_S = 1.0
#: the program of the risky provider: a job that says so kills the worker that runs it
RISKY = '#!/bin/sh\ncase "$(cat)" in *KILLS-ITS-WORKER*) kill -9 $PPID;; esac\nsleep 0.05\necho fine\n'


class Node:
    """A machine: its configuration, its model server, its worker, its own ways to Redis and PostgreSQL."""

    def __init__(self, site: Site, name: str, model_class: str, in_flight: int = IN_FLIGHT) -> None:
        self.name, self.model_class, self.in_flight = name, model_class, in_flight
        self.home = site.folder / name
        self.home.mkdir()
        self.calls = site.folder / f"{name}.calls"
        self._asked_before, self._serves = 0, True
        self.server = Server(ttft_s=site.ttft, slots=4 * in_flight, queue_limit=100_000, call_log=self.calls)
        self.popped, self.committed = Snare(), Snare()
        self.redis = Proxy(site.wire, site.redis.url, lambda: RedisEar(self.popped))
        ear = lambda: PostgresEar(self.committed)  # noqa: E731
        self.database = Proxy(site.wire, site.database_url, ear) if site.postgres else None
        self.environment = site.environment(self.home, self.redis.url, self.database)
        arguments = ["worker", "--node", name, "--provider", "sim", "--serves", model_class]
        self.worker = site.role(name, arguments, {**self.environment, "OFFLOAD_NODE": name})
        (self.home / "offload.yaml").write_text(yaml.safe_dump(site.configuration(self)))

    @property
    def full_name(self) -> str:
        """What the ledger calls its worker."""
        return f"{self.name}/sim"

    @property
    def asked(self) -> int:
        """Calls its server has logged, since it was first started."""
        return self._asked_before + (int(self._stats()["requests"]) if self._serves else 0)

    @property
    def running(self) -> int:
        """Calls its server works on."""
        return int(self._stats()["in_flight"]) if self._serves else 0

    def _stats(self) -> dict[str, Any]:
        return self.server.simulator.stats()

    def stop_server(self) -> None:
        """Nobody answers its calls any more; those under way are cut."""
        self._asked_before, self._serves = self.asked, False
        self.server.stop()

    def start_server(self) -> None:
        """It answers again."""
        self.server.start()
        self._serves = True

    @property
    def proxies(self) -> list[Proxy]:
        """Its ways out."""
        return [self.redis, *([self.database] if self.database else [])]

    def close(self) -> None:
        """End its servers."""
        self.server.close()
        for proxy in self.proxies:
            proxy.close()


class Site:
    """Everything. `nursery` was forked before any thread."""

    def __init__(self, folder: Path, kind: str, divisor: float, nursery: Nursery) -> None:
        self.folder, self.kind, self.divisor, self.nursery = folder, kind, divisor, nursery
        nursery.open()
        self.times = Times().divided(divisor)
        self.ttft, self.look = TTFT_S / divisor, LOOK_S / divisor
        self.wire = Wire()
        self.redis = Redis(folder / "redis")
        self.postgres = Postgres() if kind == "postgres" else None
        self.database_url = self.postgres.create("ledger") if self.postgres else f"sqlite:///{folder / 'ledger.db'}"
        self.extra: dict[str, Node] = {}
        self.nodes = [Node(self, "small1", "small"), Node(self, "small2", "small")]
        first = self.nodes[0].home
        self.beat_redis = Proxy(self.wire, self.redis.url)
        self.beat = self.role("beat", ["beat"], self.environment(first, self.beat_redis.url, None))
        self._second: Role | None = None
        self.pool = Pool(self.settings(self.redis.url, self.database_url))
        self._keeping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    # --- what it is made of --------------------------------------------------------------------------------

    def settings(self, redis_url: str, database_url: str) -> Settings:
        """A client's settings."""
        return Settings(
            home=self.nodes[0].home, redis_url=redis_url, database_url=database_url, time_divisor=self.divisor
        )

    def role(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Role:
        """A process of this pool; not started."""
        return Role(self.nursery, self.folder, name, arguments, environment)

    def environment(self, home: Path, redis_url: str, database: Proxy | None) -> dict[str, str]:
        """A role's environment."""
        return clean_environment() | {
            "OFFLOAD_HOME": str(home),
            "OFFLOAD_REDIS_URL": redis_url,
            "OFFLOAD_DATABASE_URL": database.url if database else self.database_url,
            "OFFLOAD_TIME_DIVISOR": str(self.divisor),
            "OFFLOAD_DRAIN_S": str(2 * self.ttft + 2),
        }

    def configuration(self, node: Node) -> dict[str, Any]:
        """A node's offload.yaml: its own server serves its own class."""
        program = self.folder / "risky.sh"
        if not program.exists():
            program.write_text(RISKY)
            program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        if node.model_class == "risky":
            provider: dict[str, Any] = {"kind": "command", "command": [str(program)], "reach": "local"}
        else:
            provider = {"kind": "ollama", "url": node.server.url, "reach": "local"}
        classes = ("small", "big", "risky")
        category = {"audit": 0, "system": "Task."}
        serve = {"serve": [{"provider": "sim", "model": "gemma3:4b"}]}
        return {
            "providers": [{"name": "sim", "in_flight": node.in_flight} | provider],
            "classes": {name: {"serve": []} for name in ("small", "coder", "reason", "embed")}
            | dict.fromkeys(classes, serve),
            "categories": {name: {"class": name} | category for name in classes}
            | {
                "data": {"class": "small", "json": True} | category,
                "once": {"class": "small", "attempts": 1} | category,
            },
        }

    def node(self, name: str) -> Node:
        """The big or the risky node, started when first asked for."""
        if name not in self.extra:
            in_flight = {"big": BIG_IN_FLIGHT, "risky": IN_FLIGHT}[name]
            self.extra[name] = Node(self, name, name, in_flight)
            self.extra[name].worker.start()
            self.until_well([self.extra[name]])
        return self.extra[name]

    @property
    def every_node(self) -> list[Node]:
        """Those of today."""
        return [*self.nodes, *self.extra.values()]

    @property
    def roles(self) -> list[Role]:
        """Every process that is kept."""
        beats = [self.beat, *([self._second] if self._second else [])]
        return [*beats, *(node.worker for node in self.every_node)]

    @property
    def redis_data(self) -> Path:
        """Where Redis keeps its file."""
        return self.folder / "redis" / "redis"

    def redis_up(self) -> None:
        """Start Redis if it does not run."""
        if self.redis.process.poll() is not None:
            self.redis.start()

    def second_beat(self, zone: str) -> Role:
        """Another beat, in a time zone; not started."""
        environment = self.environment(self.nodes[0].home, self.redis.url, None) | {"TZ": zone}
        self._second = self.role("beat2", ["beat"], environment)
        return self._second

    def sweeps(self) -> float | None:
        """When beat last swept."""
        return ticks.ticked_at(self.db, "sweep")

    def command(self, arguments: Sequence[str], largest_file: int | None = None) -> tuple[int, str]:
        """Run a command to its end: its status, and what it said."""
        log = self.folder / "command.log"
        log.unlink(missing_ok=True)
        environment = self.environment(self.nodes[0].home, self.redis.url, None)
        environment["CHAOS_STRINGS"] = str(self.beat.strings.path)
        pid = self.nursery.start(arguments, environment, log, largest_file)
        eventually(lambda: self.nursery.status(pid) is not None, f"offload {arguments[0]} ends", 60)
        status = self.nursery.status(pid)
        assert status is not None
        return status, log.read_text() if log.exists() else ""

    # --- running -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start every role, and wait until they work."""
        self.db  # noqa: B018  made before the roles look for it
        for role in self.roles:
            role.start()
        self._keeper.start()
        self.until_well(self.nodes)

    @property
    def db(self) -> Database:
        """The ledger, by a way of our own."""
        return self.pool.db

    def until_well(self, nodes: Sequence[Node], within_s: float = 90.0) -> None:
        """Wait until beat sweeps and these workers take work."""
        wanted = {node.full_name for node in nodes}
        until = time.monotonic() + within_s
        while not self._is_well(wanted):  # not `eventually`: it looks so often that the pool would feel it
            assert time.monotonic() < until, f"beat and {', '.join(sorted(wanted))} do not work after {within_s:g} s"
            time.sleep(self.look)

    def _is_well(self, wanted: set[str]) -> bool:
        try:
            tick = ticks.last_tick(self.db, "sweep")
            there = {(w.name, w.pid) for w in reading.all_workers(self.db) if w.consuming and w.health == "healthy"}
        except DBAPIError:
            return False
        pids = {node.full_name: node.worker.pid for node in self.every_node if node.worker.alive}
        return tick is not None and abs(tick) < 4 * self.times.sweep and all((n, pids.get(n)) in there for n in wanted)

    def _keep(self) -> None:
        while not self._keeping.wait(self.look / 4):
            for role in self.roles:
                role.keep()

    def is_locked(self) -> bool:
        """Whether somebody holds SQLite's write lock for longer than any transaction of ours takes."""
        if self.postgres is not None:
            return False
        held = sqlite3.connect(self.folder / "ledger.db", isolation_level=None, timeout=1.0)
        try:
            held.execute("BEGIN IMMEDIATE")
            held.rollback()
        except sqlite3.OperationalError:
            return True
        finally:
            held.close()
        return False

    def holders(self) -> str:
        """Who holds what others wait for, in PostgreSQL; empty where nobody does."""
        if self.postgres is None:
            return ""
        query = text(
            "SELECT h.state, extract(epoch FROM clock_timestamp() - h.state_change) AS age, left(h.query, 60) AS said, "
            "count(*) AS waiting FROM pg_stat_activity w "
            "JOIN pg_stat_activity h ON h.pid = ANY(pg_blocking_pids(w.pid)) "
            "GROUP BY h.pid, h.state, h.state_change, h.query"
        )
        with self.db.read() as c:
            rows = c.execute(query).all()
        return "; ".join(f"{r.waiting} wait for one {r.state} for {r.age:.1f} s, {r.said!r}" for r in rows)

    def held_up(self) -> float:
        """For how many seconds somebody has stood still in a transaction that others wait for; 0 where nobody has."""
        if self.postgres is None:
            return 0.0
        query = text(
            "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - h.state_change)), 0) FROM pg_stat_activity w "
            "JOIN pg_stat_activity h ON h.pid = ANY(pg_blocking_pids(w.pid)) WHERE h.state LIKE 'idle in transaction%'"
        )
        with self.db.read() as c:
            return float(c.execute(query).scalar_one())

    def supervised(self) -> subprocess.Popen[bytes]:
        """Start `offload up` for a node of its own, in this pool; the caller ends it."""
        home = self.folder / "up"
        if not home.exists():
            home.mkdir()
            shutil.copy(self.nodes[0].home / "offload.yaml", home)
        environment = self.environment(home, self.redis.url, None) | {"OFFLOAD_NODE": "up"}
        root = str(Path(__file__).parents[2])
        with (self.folder / "up.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "api", "up"],
                env=environment | {"PYTHONPATH": root},
                cwd=root,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def close(self) -> None:
        """End everything."""
        self._keeping.set()
        for role in self.roles:
            role.end()
        self.db.close()
        for node in self.every_node:
            node.close()
        self.beat_redis.close()
        self.redis.close()
        if self.postgres:
            self.postgres.close()
        self.wire.close()
        self.nursery.close()
