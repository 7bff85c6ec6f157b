"""Sums the hours that are due, and takes in what the helpers logged; prunes calls that are old enough."""

from __future__ import annotations

from collections import Counter

from tasks.ledger import rollups
from tasks.ledger.database import Database


def sum_due(db: Database) -> Counter[str]:
    """Sum every hour that is due, the oldest first; the count of those that changed."""
    due, seen = rollups.due(db)
    counts = Counter(hours=sum(rollups.roll_up(db, hour) for hour in due))
    rollups.done(db, seen, dict(counts))
    return +counts
