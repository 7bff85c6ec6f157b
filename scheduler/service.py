"""A periodic service of one process: it runs when beat's tick comes, and by its own clock when none does.

Ticks travel through Redis, and are made by a clock that may be set back an hour; leases and deadlines wait for
neither.  Any number of processes may run the same service at once.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable

import structlog

from tasks.errors import OtherTables

#: intervals without a run after which this process runs it by itself
LATE = 2

log = structlog.get_logger(__name__)


class Service(threading.Thread):
    """run_once: returns counts. every_s: seconds between beat's ticks."""

    def __init__(self, name: str, run_once: Callable[[], Counter[str]], every_s: float) -> None:
        super().__init__(name=name, daemon=True)
        self._run_once = run_once
        self._every_s = every_s
        self._ran_at = time.monotonic()
        self._running = threading.Lock()
        self._stop_asked = threading.Event()

    def run_now(self) -> None:
        """Run it, unless it runs in this process already; whatever goes wrong, the next run looks again.

        Beside tables of another version the process ends: what it would write is not theirs.
        """
        if not self._running.acquire(blocking=False):
            return
        try:
            if found := {name: n for name, n in self._run_once().items() if n and name != "sent"}:
                log.info(self.name, **found)
        except OtherTables as error:
            log.critical(f"the {self.name} ends this process", error=str(error))
            os._exit(os.EX_SOFTWARE)  # for its supervisor; what starts again says the same
        except Exception as error:
            log.error(f"the {self.name} failed", error=type(error).__name__)
        finally:
            self._ran_at = time.monotonic()
            self._running.release()

    def stop(self) -> None:
        """End the thread, after the run under way."""
        self._stop_asked.set()
        self.join()

    def run(self) -> None:
        while not self._stop_asked.wait(self._every_s / 4):
            if time.monotonic() - self._ran_at > LATE * self._every_s:
                self.run_now()
