"""Ports for what tests start: the system gives none of these to others, nor does another test process look among them.

A port that the system chose is anybody's again until a server has it, and on a busy machine that takes seconds.
"""

from __future__ import annotations

import itertools
import os
import secrets
from pathlib import Path

from api.embedded import redis_server

#: ports of each test process
SLICE = 1_000
#: Linux says here from which port on it gives them out; no other system begins lower than this
_RANGE, _LOWEST = Path("/proc/sys/net/ipv4/ip_local_port_range"), 32_768

#: the pool's own choice, which asks the system where no port is wanted
chosen_by_pool = redis_server.free_port


def _slice(worker: str) -> range:
    """The ports of gw0, gw1 …, all below those that the system gives out; without workers those of gw0."""
    given_out_from = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else _LOWEST
    end = min(given_out_from, _LOWEST) - int(worker.removeprefix("gw")) % 10 * SLICE
    return range(end - SLICE, end)


def _in_turn(ports: range) -> itertools.cycle[int]:
    """One after another, without end: none comes again soon; from anywhere on, as two suites may run at once."""
    first = secrets.randbelow(len(ports))
    return itertools.cycle([*ports[first:], *ports[:first]])


def _draw() -> None:
    global _ports
    _ports = _in_turn(_slice(os.environ.get("PYTEST_XDIST_WORKER", "gw0")))


_ports: itertools.cycle[int]
_draw()
os.register_at_fork(after_in_child=_draw)  # pools side by side are forks of one process: each begins elsewhere


def free_port(wanted: int = 0) -> int:
    """A TCP port of loopback that nobody uses now: the one that is wanted where that is free, else the next of ours."""
    return chosen_by_pool(wanted or next(_ports))
