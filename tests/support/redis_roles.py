"""A Redis as ops/redis/start.sh makes it: every role with a user, a password and rights of its own."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Sequence
from pathlib import Path

import redis

from api.embedded.redis_server import find_binary
from tests.support.ports import free_port
from tests.support.waiting import eventually

OPS = Path(__file__).parents[2] / "ops"
ROLES = ("admin", "submitter", "api", "worker", "node", "cloud", "beat", "flower", "metrics")


class RedisOfRoles:
    """The server; what TestPool wants of one, and an address for each role. options: more of the server's own."""

    def __init__(self, folder: Path, options: Sequence[str] = (), server: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.passwords = {role: secrets.token_hex(16) for role in ROLES}
        environment = {f"REDIS_{role.upper()}_PASSWORD": password for role, password in self.passwords.items()}
        start = ("sh", str(OPS / "redis" / "start.sh"), str(folder), str(folder))
        self._log = (folder / "redis.log").open("ab")
        self.process = subprocess.Popen(
            [*start, "--port", str(self.port), "--bind", "127.0.0.1", *options],
            env=environment | {"PATH": os.environ["PATH"], "REDIS_SERVER": server or find_binary()},
            stdout=self._log,
            stderr=self._log,
        )
        self.url = self.of("submitter")
        self.client = self.connect("admin")
        eventually(self._answers, "Redis answers")

    def of(self, role: str) -> str:
        """The address that a role connects to."""
        return f"redis://{role}:{self.passwords[role]}@127.0.0.1:{self.port}/0"

    def connect(self, role: str) -> redis.Redis:
        """A client of a role's."""
        return redis.Redis.from_url(self.of(role), socket_timeout=5)

    def refused(self) -> list[str]:
        """What was refused to whom since the server started: user, why, what."""
        return sorted({f"{e['username']}: {e['reason']} {e['object']}" for e in self.client.acl_log(1_000)})

    def _answers(self) -> bool:
        assert self.process.poll() is None, "it ended; see redis.log"
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def close(self) -> None:
        """End it."""
        self.client.close()
        self.process.kill()
        self.process.wait()
        self._log.close()
