"""What is watched all the time: how loaded the machine is, and I9."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from tasks.ledger.database import STANDS_STILL_S
from tests.chaos.client import Client
from tests.chaos.pool import Node, Site

#: seconds for what no divisor touches: commits, claims, a tick of beat. They, and a fault's own undivided seconds,
#: count for as many times as processes wanted each core during the strike (Load)
ALLOWANCE_S = 2.0
#: I9: seconds, divided, that a worker may have half of its room free while due work waits
IDLE_S = 10.0
#: seconds until a client of Redis notices a connection that died in silence, and works again: its socket timeouts
#: and health checks (tasks/app.py) are no times of ours and are not divided
SOCKETS_S = 35.0
#: seconds beyond which nobody may stand still in a transaction: PostgreSQL ends it, or the next sweep but one
FROZEN_S = STANDS_STILL_S + 1.0


class Load:
    """How many processes wanted each core, on the mean since `begin`: by so much work takes longer. At least 1."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget what was."""
        self._sum, self._n = 0.0, 0

    def look(self) -> None:
        """Look once; Linux only, elsewhere the load is 1."""
        with suppress(OSError):
            running = int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
            self._sum += max(1.0, (running - 1) / (os.cpu_count() or 1))  # but for ourselves
            self._n += 1

    def mean(self) -> float:
        """The mean so far."""
        return self._sum / self._n if self._n else 1.0


class Idle(threading.Thread):
    """I9: tells of workers that stood half empty while due work waited, but for those that a strike excuses."""

    def __init__(self, site: Site, client: Client) -> None:
        super().__init__(name="idle", daemon=True)
        self.excused: set[str] = set()
        self._site, self._client = site, client
        self._since: dict[str, float] = {}
        self._found: dict[str, str] = {}
        self._stopping = threading.Event()
        self.load = Load()
        self._sockets_until = 0.0  #: monotonic; clients of Redis notice connections that died in silence by then

    def run(self) -> None:
        while not self._stopping.wait(2 * self._site.look):
            self.load.look()
            with suppress(Exception):  # a server or a ledger that is away says nothing of the workers
                self._look()

    def _look(self) -> None:
        now = time.monotonic()
        waiting = self._client.waiting("small")
        waits = waiting > sum(n.in_flight for n in self._site.nodes)
        for node in self._site.nodes:
            room = node.running <= node.in_flight // 2
            if not (room and waits) or node.name in self.excused or self._held_up(node, now):
                self._since[node.name] = now
            elif (long := now - self._since.setdefault(node.name, now)) > self._most():
                words = f"{node.running} of {node.in_flight} calls for {long:.1f} s while {waiting} jobs waited"
                self._found[node.name] = f"{node.name} ran {words}"

    def _held_up(self, node: Node, now: float) -> bool:
        """Whether a process that froze in a transaction holds all others up, as PostgreSQL lets it for 5 s."""
        return (
            now - self._since.get(node.name, now) > self._most() / 4
            and 0 < self._site.held_up() < FROZEN_S + 2 * self._site.times.sweep
        )

    def _most(self) -> float:
        sockets_s = SOCKETS_S if time.monotonic() < self._sockets_until else 0.0
        return IDLE_S / self._site.divisor + ALLOWANCE_S * self.load.mean() + sockets_s

    def sockets_broke(self) -> None:
        """Connections to Redis died in silence, or did until now: whoever had one may stand idle for a while."""
        self._sockets_until = time.monotonic() + SOCKETS_S

    def take(self) -> list[str]:
        """What was seen since the last time."""
        found, self._found = list(self._found.values()), {}
        return found

    def stop(self) -> None:
        """End the watch."""
        self._stopping.set()
        self.join()
