"""The processes of the pool under test, and what each is held by from within."""

from __future__ import annotations

import os
import signal
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.chaos.inside import sitecustomize as inside
from tests.support.nursery import Nursery
from tests.support.waiting import eventually

#: what a killed role is left alone before it is started again, as systemd's RestartSec
RESTART_S = 0.1


class Strings:
    """What a role is held by from within (inside/sitecustomize.py)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(inside.LAYOUT.size))

    def clock(self, offset_s: float) -> None:
        """Let its clock be wrong by so many seconds."""
        self._write(0, struct.pack("<d", offset_s))

    def trap(self, trap: int, on: int) -> None:
        """Act at its next such commit to SQLite."""
        self._write(12, struct.pack("<i", on))
        self._write(8, struct.pack("<i", trap))

    @property
    def sprung(self) -> bool:
        """Whether the trap was met."""
        return bool(inside.LAYOUT.unpack(self.path.read_bytes())[1] == inside.SPRUNG)

    def _write(self, at: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(at)
            file.write(data)


class Role:
    """One process of the pool, started again when it dies, as its machine's supervisor would."""

    def __init__(
        self, nursery: Nursery, folder: Path, name: str, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.strings = Strings(folder / f"{name}.strings")
        self.log = folder / f"{name}.log"
        self.pid = 0
        self.wanted = False  #: started again when it dies
        self.deaths: list[int] = []  #: exit statuses, negative for signals
        self._told = self._read = 0
        self._nursery = nursery
        self._arguments = list(arguments)
        self._environment = {**environment, "CHAOS_STRINGS": str(self.strings.path)}
        self._start_at = 0.0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start it, and again when it dies."""
        self.wanted = True
        self.keep()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.pid != 0 and self._nursery.status(self.pid) is None

    def keep(self) -> None:
        """Start it if it should run and does not."""
        with self._lock:
            if self.pid and (status := self._nursery.status(self.pid)) is not None:
                self.deaths.append(status)
                self.pid = 0
                self._start_at = time.monotonic() + RESTART_S
            if self.wanted and not self.pid and time.monotonic() >= self._start_at:
                self.pid = self._nursery.start(self._arguments, self._environment, self.log)

    def signal(self, number: signal.Signals) -> int:
        """Send it a signal, if it lives; which process got it, 0 for none."""
        if pid := self.pid:  # read once: whoever keeps it may change it meanwhile
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return pid

    def new_deaths(self) -> list[int]:
        """Exit statuses that were not told before."""
        new, self._told = self.deaths[self._told :], len(self.deaths)
        return new

    def lost_a_thread(self) -> bool:
        """Whether its log has said since the last look that one of its threads died, which nothing may bring about."""
        if not self.log.exists():
            return False
        with self.log.open("rb") as file:
            file.seek(self._read)
            said = file.read()
            self._read = file.tell()
        return b"a thread of the worker died" in said

    def is_over(self, pid: int) -> bool:
        """Whether a process of this role has ended."""
        return self._nursery.status(pid) is not None

    def end(self) -> None:
        """Kill it for good."""
        self.wanted = False
        self.signal(signal.SIGKILL)

    def ended(self, pid: int, within_s: float) -> int:
        """Wait for the end of a process of this role; its status."""
        eventually(lambda: self.is_over(pid), f"{self.name} ends", within_s)
        status = self._nursery.status(pid)
        assert status is not None
        return status
