"""Starts every role, restarts what dies, stops everything: one foreground process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
import structlog
import yaml

from api.embedded import discover, redis_server
from api.embedded.ports import API_PORT, FLOWER_PORT, METRICS_PORT
from api.embedded.state import held_lock, write_pool
from api.embedded.vital_signs import VitalSigns
from tasks.config import detected_path, load_registry, says_servers
from tasks.errors import ConfigError, PoolError
from tasks.ledger import reading, ticks
from tasks.ledger.database import Database
from tasks.ledger.schema import open_ledger
from tasks.registry import Registry, cloud_keys
from tasks.settings import Settings

#: seconds before a role that died is started again: the first time, and the most
RESTART_FIRST_S, RESTART_MOST_S = 0.2, 30.0
#: seconds of life after which a role counts as well again
WELL_AFTER_S = 30.0
#: seconds a role is given beyond its own drain before it is killed
STOP_GRACE_S = 10.0
#: seconds the whole pool may take to come up
START_S = 60.0
#: seconds a role may be still at least; starting one takes a few on a busy machine
FROZEN_S = 15.0
#: seconds between two looks at the roles
WATCH_S = 0.2
#: seconds a monitor is given: it holds nothing
MONITOR_GRACE_S = 2.0
#: seconds between looks for a model server while there is none
LOOK_AGAIN_S = 10.0

#: roles that read once which model servers there are
READERS = ("beat", "api", "flower", "metrics")

#: what `up` says where nothing will run the jobs
NO_SERVER = "none was found yet; jobs wait until one is there (to look around: offload down; offload up --simulator)"
#: the simulator at about the pace of a small GPU, so that there is something to watch
SIMULATOR_PACE = ("--load-s", "0.5", "--ttft-s", "0.2", "--tokens-per-s", "80")

log = structlog.get_logger(__name__)


@dataclass
class Role:
    """One child process, on its leash."""

    name: str
    command: Sequence[str]
    grace_s: float
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0  #: monotonic; not before
    deaths: int = 0
    asked_to_stop: bool = False

    def start(self) -> None:
        """Start the child, holding the other end of its leash."""
        leash = str(Path(__file__).with_name("leash.py"))
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", leash, str(self.grace_s), *self.command],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the supervisor only, which stops its roles in order
            env=self.environment,
        )
        self.started_at = time.monotonic()
        self.asked_to_stop = False

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def ask_to_stop(self) -> None:
        """Let go of the leash."""
        self.asked_to_stop = True
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def join(self) -> None:
        """Wait for its end, which the leash makes sure of."""
        if self.process is not None:
            self.process.wait()

    def keep(self, now: float) -> None:
        """Start it when it should run and does not; each death in a row doubles the wait."""
        if self.alive:
            if now - self.started_at > WELL_AFTER_S:
                self.deaths = 0
            return
        if self.process is not None:
            log.warning("a role ended and is started again", role=self.name, status=self.process.returncode)
            self.deaths += self.process.returncode != 0  # Celery ends in order on a message it cannot decode
            self.process = None
            self.start_at = now + min(RESTART_MOST_S, RESTART_FIRST_S * 2 ** min(self.deaths, 20))
        if now >= self.start_at:
            self.start()


@dataclass
class Supervisor:
    """The pool of one machine.

    simulate: use the shipped simulator when no server here serves every class. monitor: run Flower and the
    exporter of metrics as well.
    """

    settings: Settings
    simulate: bool = False
    monitor: bool = False
    roles: list[Role] = field(default_factory=list)
    _stop: bool = False
    _keys: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Run until SIGINT or SIGTERM; raises PoolError where the pool cannot start."""
        with held_lock(self.settings) as still_ours:
            for wanted in (signal.SIGINT, signal.SIGTERM):
                signal.signal(wanted, self._on_signal)
            try:
                db = self._start()
                self._watch(db, still_ours)
                db.close()
            finally:
                self._stop_all()

    def _on_signal(self, *_: Any) -> None:
        if not self._stop:
            log.info("stopping")
        self._stop = True

    # --- start ---------------------------------------------------------------------------------------------

    def _start(self) -> Database:
        db = open_ledger(self.settings.ledger())
        self._keys = _secrets(load_registry(self.settings))
        url = self._start_redis()
        self.settings.redis_url = url
        registry = self._find_registry()
        with db.read() as c:
            started_at = db.now(c)  # what workers and beat write is compared with it
        self._pool: dict[str, Any] = {
            "pid": os.getpid(),
            "redis_url": url,
            "started_at": started_at,
            "servers": self._servers(registry),
            "ready": False,
        }
        write_pool(self.settings, self._pool)
        self._add("beat", "beat", keeps=registry.notify.receivers)
        self._add_workers(registry)
        self._pool["api"] = self._add_api(registry)
        if self.monitor:
            self._pool["monitor"] = self._add_monitor()
        self._wait_until_ready(db)
        self._pool["ready"] = True
        write_pool(self.settings, self._pool)
        log.info("the pool is up", home=str(self.settings.home), configuration=registry.source)
        return db

    def _start_redis(self) -> str:
        if self.settings.redis_url:
            return self.settings.redis_url
        for _ in range(3):  # between choosing a port and listening somebody else may take it
            server = redis_server.prepare(self.settings.home, self.settings.run_dir)
            role = self._role("redis", server.command)
            role.start()
            if self._answers(server.url, role):
                self.roles.append(role)
                return server.url
            role.ask_to_stop()
            role.join()
            if self._stop:
                raise PoolError("stopped while starting")
        raise PoolError(f"the embedded Redis does not start; see above, and {self.settings.home / 'redis'}")

    def _answers(self, url: str, role: Role) -> bool:
        client = redis.Redis.from_url(url, socket_connect_timeout=1, socket_timeout=5)
        until = time.monotonic() + START_S
        while role.alive and time.monotonic() < until and not self._stop:
            with contextlib.suppress(redis.RedisError):
                if client.ping():
                    client.close()
                    return True
            time.sleep(0.02)
        return False

    def _find_registry(self) -> Registry:
        """The configuration, with the model servers that are here where it names none."""
        detected = detected_path(self.settings)
        detected.unlink(missing_ok=True)
        if says_servers(self.settings):
            return load_registry(self.settings)
        config = discover.choose(discover.find_servers())
        if self.simulate and not discover.serves_all(config):
            config = discover.simulated(self._start_simulator())
        partial = detected.with_suffix(".new")
        partial.write_text("# written by `offload up`; it is made anew each time\n" + yaml.safe_dump(config))
        partial.replace(detected)
        if not config["providers"]:
            log.warning("no model server was found; jobs wait until one is there", looking_again_every_s=LOOK_AGAIN_S)
        return load_registry(self.settings)

    def _start_simulator(self) -> str:
        port = redis_server.free_port()
        self._add("simulator", "simulate", "--port", str(port), *SIMULATOR_PACE)
        return f"http://127.0.0.1:{port}"

    def _add_api(self, registry: Registry) -> str:
        """Start the HTTP API, which has the clouds' keys: it calls for those who wait. Where it listens."""
        self.settings.api_sign.unlink(missing_ok=True)  # of one that was killed
        port = redis_server.free_port(API_PORT)
        secrets = [name for hook in registry.api.webhooks for name in (hook.url_env, hook.secret_env)]
        self._add("api", "api", "--port", str(port), keeps=[*self._keys, *secrets])
        return f"http://127.0.0.1:{port}"

    def _move_api(self) -> None:
        """Choose another port where the API ended before it served: somebody else may have taken it meanwhile."""
        for role in self.roles:
            if role.name == "api" and role.process is not None and not role.alive:
                port = redis_server.free_port(API_PORT)
                role.command = (*role.command[:-1], str(port))
                self._pool["api"] = f"http://127.0.0.1:{port}"

    def _add_monitor(self) -> dict[str, str]:
        """Start what people watch the pool with; nothing waits for it. What -> where."""
        port = redis_server.free_port(FLOWER_PORT)
        self._add("flower", "flower", "--port", str(port), grace_s=MONITOR_GRACE_S)
        metrics = redis_server.free_port(METRICS_PORT)
        self._add("metrics", "metrics", "--port", str(metrics), grace_s=MONITOR_GRACE_S)
        return {"flower": f"http://127.0.0.1:{port}/", "metrics": f"http://127.0.0.1:{metrics}/metrics"}

    def _servers(self, registry: Registry) -> str:
        """In words: what will run the jobs."""
        if any(r.name == "simulator" for r in self.roles):
            return "the shipped simulator (no model server here serves every class; its answers are made up)"
        used = [p for p in registry.providers.values() if registry.classes_of(p.name)]
        return ", ".join(f"{p.name} ({p.where})" for p in used) or NO_SERVER

    def _add_workers(self, registry: Registry) -> None:
        self._keys = _secrets(registry)
        for name, provider in registry.providers.items():
            if registry.classes_of(name):
                keeps = [provider.api_key_env] if provider.api_key_env else []
                self._add(f"worker {name}", "worker", "--node", self.settings.node, "--provider", name, keeps=keeps)
            else:
                log.warning("a provider serves no class", provider=name)

    def _add(self, name: str, *arguments: str, keeps: Sequence[str] = (), grace_s: float | None = None) -> None:
        command = (sys.executable, "-P", "-m", "api", *arguments)  # -P: never the current folder's code
        role = self._role(name, command, keeps)
        role.grace_s = grace_s or role.grace_s
        self.roles.append(role)
        role.start()

    def _role(self, name: str, command: Sequence[str], keeps: Sequence[str] = ()) -> Role:
        """A role; of the secrets it gets those that it keeps."""
        environment = {k: v for k, v in os.environ.items() if k not in self._keys or k in keeps}
        environment["OFFLOAD_HOME"] = str(self.settings.home)
        if self.settings.redis_url is not None:  # by environment, which others cannot read, and not by a file to lose
            environment["OFFLOAD_REDIS_URL"] = self.settings.redis_url
        for variable, path in (("OFFLOAD_CONFIG", self.settings.config), ("OFFLOAD_POLICY", self.settings.policy)):
            if path is not None:
                environment[variable] = str(path.absolute())
        return Role(name, command, self.settings.drain_s + STOP_GRACE_S, environment)

    def _wait_until_ready(self, db: Database) -> None:
        """Every worker has entered itself, beat has ticked, and the API serves."""
        wanted = {r.name.removeprefix("worker ") for r in self.roles if r.name.startswith("worker ")}
        began, until = self._pool["started_at"], time.monotonic() + START_S
        while not self._stop and time.monotonic() < until:
            mine = [w for w in reading.all_workers(db) if w.node == self.settings.node]
            here = {w.provider for w in mine if w.last_seen >= began}
            if wanted <= here and self.settings.api_sign.exists() and (ticks.ticked_at(db, "sweep") or 0.0) >= began:
                return
            if not self.settings.api_sign.exists():
                self._move_api()
            self._keep_roles()
            time.sleep(0.05)
        if not self._stop:
            raise PoolError("the pool did not come up in time; the messages above say why")

    # --- run and stop --------------------------------------------------------------------------------------

    def _watch(self, db: Database, still_ours: Callable[[], bool]) -> None:
        silent_s = max(FROZEN_S, self.settings.times.worker_gone)
        files = {"flower": self.settings.flower_sign, "api": self.settings.api_sign}
        signs = VitalSigns(db, self.settings.redis_url or "", self.settings.node, silent_s, files)
        ledger = db.path.stat() if db.path else None  # PostgreSQL is nobody's file
        next_look = time.monotonic() + LOOK_AGAIN_S
        while not self._stop:
            self._keep_roles()
            self._keep_pool_file()
            self._end_frozen(signs)
            if not still_ours() or not _is_same(ledger, db.path):
                log.error("the pool's lock or ledger was taken away; stopping", home=str(self.settings.home))
                self._stop = True
            if time.monotonic() >= next_look and not self._has_workers():
                self._look_again()
                next_look = time.monotonic() + LOOK_AGAIN_S
            time.sleep(WATCH_S)

    def _has_workers(self) -> bool:
        return any(r.name.startswith("worker ") for r in self.roles)

    def _look_again(self) -> None:
        """Take in model servers that have come since; roles that have read of none are started anew, in order."""
        try:
            registry = self._find_registry()
        except ConfigError as error:  # a typo ends no pool that runs
            log.error("the configuration cannot be read", fault=str(error), looking_again_every_s=LOOK_AGAIN_S)
            return
        readers = [r for r in self.roles if r.name in READERS]
        self._add_workers(registry)
        if self._has_workers():
            self._pool["servers"] = self._servers(registry)
            write_pool(self.settings, self._pool)
            log.info("model servers are here; the other roles read of them", servers=self._pool["servers"])
            for role in readers:
                role.ask_to_stop()

    def _keep_pool_file(self) -> None:
        """Others find the pool by this file; without its folder there is no pool any more."""
        if self.settings.pool_file.exists():
            return
        if self.settings.run_dir.is_dir():
            write_pool(self.settings, self._pool)
        else:
            log.error("the pool's folder is gone; stopping", home=str(self.settings.home))
            self._stop = True

    def _end_frozen(self, signs: VitalSigns) -> None:
        """A role that lives and does nothing is ended, and so started again."""
        started = {r.name: r.started_at for r in self.roles if r.alive and not r.asked_to_stop}
        for name in signs.frozen(started):
            log.error("a role is frozen and is ended", role=name)
            for role in self.roles:
                if role.name == name:
                    role.ask_to_stop()

    def _keep_roles(self) -> None:
        now = time.monotonic()
        for role in self.roles:
            role.keep(now)

    def _stop_all(self) -> None:
        """Workers and beat first, together; the servers they need last."""
        servers = [r for r in self.roles if r.name in ("redis", "simulator")]
        for group in ([r for r in self.roles if r not in servers], servers):
            for role in group:
                role.ask_to_stop()
            for role in group:
                role.join()


def _secrets(registry: Registry) -> list[str]:
    """Variables that one role needs and no other gets: clouds' keys, and the addresses of who is told."""
    return [*cloud_keys(registry), *registry.notify.receivers]


def _is_same(before: os.stat_result | None, path: Path | None) -> bool:
    if before is None or path is None:
        return True
    try:
        return os.path.samestat(before, path.stat())
    except OSError:
        return False
