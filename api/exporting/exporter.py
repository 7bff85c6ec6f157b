"""The collector: every scrape asks the ledger and Redis, and waits for neither longer than it may."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.core import Metric

from api.exporting.counting import Counting
from api.exporting.families import families
from api.exporting.sources import Broker, Ledger, Look
from api.exporting.tally import Tally
from tasks.ledger import gauges
from tasks.ledger.gauges import Gauges
from tasks.registry import Registry
from tasks.settings import Settings, Times

#: seconds a scrape waits for its answers; with all that is to be done besides it takes at most two
WAIT_S = 1.5
#: seconds a scrape waits for the count of what waits, once there is one from before
PATIENCE_S = 0.05
#: that count takes no more than one part in so many of the time
REST = 50.0


class Exporter:
    """A collector for a `prometheus_client` registry; any number of scrapes may share it.

    broker_url: is asked at each scrape.
    """

    def __init__(
        self, ledger: str | Path, broker_url: Callable[[], str | None], registry: Registry, times: Times
    ) -> None:
        self._registry = registry
        self._times = times
        self._ledger = Ledger(ledger)
        self._broker = Broker(broker_url, list(registry.classes))
        self._counting = Counting(registry)
        self._stands = Look("the ledger", self._look)
        self._waits = Look("the ledger's queue", self._queued, rest=REST)
        self._counted = Look("the ledger's telemetry", self._count)
        self._lengths = Look("Redis", self._broker.lengths)

    def begin(self) -> None:
        """Count from now on, and not from the first scrape."""
        self._stands.begin()
        self._counted.begin()

    def collect(self) -> Iterator[Metric]:
        """Every metric that is known, within two seconds."""
        now = time.monotonic()
        for look in (self._stands, self._lengths, self._counted, self._waits):
            look.begin()
        stands, lengths = self._stands.answer(now + WAIT_S), self._lengths.answer(now + WAIT_S)
        self._counted.answer(now + WAIT_S)  # after a long pause there is more to count: the next scrape has it
        waits = self._waits.newest(now + PATIENCE_S)
        if waits is None:  # it is the first one
            waits = self._waits.answer(now + WAIT_S)
        with self._counting.lock:
            return iter(list(families(stands, waits, lengths, self._counting.tally)))

    def describe(self) -> Iterator[Metric]:
        """Every metric's name; nobody is asked."""
        return families(None, None, None, Tally())

    def close(self) -> None:
        """Close what connections there are."""
        self._ledger.close()
        self._broker.close()

    def _look(self) -> Gauges:
        with self._ledger.opened() as db:
            classes, providers = self._registry.classes, self._registry.providers
            found = gauges.look(db, classes, providers.values(), self._times.worker_gone)
        self._counting.add_totals(found)
        return found

    def _queued(self) -> dict[str, int]:
        with self._ledger.opened() as db:
            return gauges.queued(db, self._registry.classes)

    def _count(self) -> None:
        with self._ledger.opened() as db:
            self._counting.catch_up(db)


def exporter(settings: Settings, registry: Registry) -> Exporter:
    """The collector of the pool that the settings name."""
    return Exporter(settings.ledger(), settings.broker_url, registry, settings.times)
