"""What was counted since the process began, and how far everything was read."""

from __future__ import annotations

import threading
import time

from api.exporting.tally import since, zeros
from tasks.cursors import Cursor, Recent
from tasks.ledger import arrivals, ticks
from tasks.ledger.database import Database
from tasks.ledger.gauges import Gauges
from tasks.registry import Registry


class Counting:
    """A tally that follows a ledger. Take `lock` to read it."""

    def __init__(self, registry: Registry) -> None:
        self.tally = zeros(registry)
        self.lock = threading.Lock()
        self._models = registry.models
        self._categories = registry.categories
        self._cursor: Cursor | None = None
        self._judged: Recent | None = None
        self._totals: dict[str, dict[str, int]] | None = None

    def catch_up(self, db: Database) -> None:
        """Count the calls and audits that came; those of before the first look are not counted."""
        if self._cursor is None or self._judged is None:
            self._cursor, self._judged = arrivals.begin(db, time.monotonic()), arrivals.begin_judged(db)
            return
        for rows, cursor in arrivals.new_calls(db, self._cursor, time.monotonic()):
            with self.lock:
                self.tally.add_calls(rows, self._models, self._categories)
            self._cursor = cursor
        judged, self._judged = arrivals.newly_judged(db, self._judged)
        with self.lock:
            self.tally.add_audits(judged)

    def add_totals(self, gauges: Gauges) -> None:
        """Count what the ledger itself keeps totals of."""
        found = {name: dict(gauges.ticks[name][1]) for name in ("sweep", ticks.ENDED) if name in gauges.ticks}
        before, self._totals = self._totals, found
        if before is None:
            return
        with self.lock:
            self.tally.add_sweeps(since(before.get("sweep", {}), found.get("sweep", {})))
            self.tally.add_ended(since(before.get(ticks.ENDED, {}), found.get(ticks.ENDED, {})))
