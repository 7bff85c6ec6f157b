"""Sums the hours that are due, after taking in what the helpers logged; deletes calls that are old enough."""

from __future__ import annotations

from collections import Counter

import structlog

from tasks.ledger import rollups
from tasks.ledger.database import Database
from tasks.ledger.taking import take_in
from tasks.ledger.ticks import tick
from tasks.registry import Registry
from tasks.settings import Settings

log = structlog.get_logger(__name__)


def run_once(db: Database, settings: Settings) -> Counter[str]:
    """Take in this machine's log of the helpers, and sum what is due; the counts say how many lines and hours."""
    taken = 0
    try:
        taken = take_in(db, settings.helper_log, settings.node)
    except OSError as error:
        log.warning("the helpers' log cannot be read", error=type(error).__name__)
    return +(Counter(lines=taken) + sum_due(db))


def sum_due(db: Database) -> Counter[str]:
    """Sum every hour that is due, the oldest first; the count of those that changed."""
    due, seen = rollups.due(db)
    counts = Counter(hours=sum(rollups.roll_up(db, hour) for hour in due))
    rollups.done(db, seen, dict(counts))
    return +counts


def prune(db: Database, registry: Registry) -> Counter[str]:
    """Delete what the configuration keeps no longer; the counts say how many hours were closed, and calls deleted."""
    counts = rollups.prune(db, registry.retention.calls_days)
    tick(db, "prune", dict(counts))
    return +Counter(counts)
