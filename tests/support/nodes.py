"""Nodes of one pool that share nothing but two addresses: Redis's and PostgreSQL's."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tasks.ledger import nodes
from tests.support.cli import Ran, offload
from tests.support.nursery import Role, child, started
from tests.support.pool import HURRY, TestPool, clean_environment
from tests.support.waiting import eventually


class NodeHost:
    """One machine: a home and an offload.yaml of its own, and the roles that run there."""

    def __init__(
        self, folder: Path, name: str, config: Mapping[str, Any], pool: TestPool, prefix: Sequence[str] = ()
    ) -> None:
        self.name = name
        self._prefix = prefix  # what a command begins with that runs on that machine
        self.home = folder / name
        self.home.mkdir(parents=True)
        self.configure(config)
        shared = {name: pool.environment[name] for name in ("OFFLOAD_REDIS_URL", "OFFLOAD_DATABASE_URL")}
        own = {"OFFLOAD_HOME": str(self.home), "OFFLOAD_NODE": name, "OFFLOAD_TIME_DIVISOR": str(HURRY)}
        self.environment = clean_environment() | shared | own
        self._pool = pool
        self.log = folder / f"{name}.log"
        self._workers: list[Role] = []

    def configure(self, config: Mapping[str, Any]) -> None:
        """Write its offload.yaml."""
        (self.home / "offload.yaml").write_text(yaml.safe_dump(dict(config)))

    def cli(self, *arguments: str) -> Ran:
        """Run a command there."""
        return offload(self.environment, *arguments)

    def worker(self, *arguments: str, provider: str = "sim", phase: str = "serving") -> Role:
        """Start its worker and wait until it is in this phase; one that serves also until its server is well."""
        process = self.run("worker", "--node", self.name, "--provider", provider, *arguments)
        eventually(lambda: self._is(process, phase), f"the worker of {self.name} is {phase}", 60)
        return process

    def run(self, *arguments: str) -> Role:
        """Start a role or a server there."""
        process: Role
        if self._prefix:
            process = started(arguments, self.environment, self.log, *self._prefix)
        else:
            process = child(arguments, self.environment, self.log)
        self._workers.append(process)
        return process

    def keep(self) -> None:
        """Start its worker, the last that was, again where its watchdog has ended it, as a supervisor does."""
        if self._workers[-1].poll() == os.EX_SOFTWARE:
            self.worker()

    def _is(self, process: Role, phase: str) -> bool:
        assert process.poll() is None, f"it ended: {self.log}"
        return any(
            row.pid == process.pid and row.phase == phase and (phase != "serving" or row.consuming)
            for row, _ in nodes.seen(self._pool.db)
        )

    def stop_workers(self) -> None:
        """End its workers in order, or by force."""
        for process in self._workers:
            process.send_signal(signal.SIGTERM)
        for process in self._workers:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._workers.clear()

    def close(self) -> None:
        """End everything there."""
        self.stop_workers()
