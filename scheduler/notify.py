"""Tells people what happened: looks, makes notices of what is news, and sends those that are due.

Each receiver is tried until it fails once in a run: one that is dead or hangs takes seconds of this service's own
thread, and nobody else's.
"""

from __future__ import annotations

from collections import Counter

import structlog

from scheduler import watch
from scheduler.receivers import Receiver, deliver, receivers
from tasks.ledger import notices
from tasks.ledger.database import Database
from tasks.notices import News, text
from tasks.registry import Registry
from tasks.settings import Times

log = structlog.get_logger(__name__)


def run_once(db: Database, registry: Registry, times: Times) -> Counter[str]:
    """One run; the counts say how much was news, and how many notices were delivered, put off and given up."""
    watch.run_once(db, registry, times)
    counts = Counter(news=notices.make(db, registry.notify.receivers, registry.notify.quiet_s))
    for receiver in receivers(registry.notify):
        counts += send_due(db, receiver)
    counts["given_up"] = notices.give_up(db)
    return +counts


def send_due(db: Database, receiver: Receiver) -> Counter[str]:
    """Send a receiver what is due, the oldest first, until it does not take one."""
    counts: Counter[str] = Counter()
    while (notice := notices.claim(db, receiver.name)) is not None:
        news = News(notice.kind, notice.subject, notice.detail, notice.times, notice.first_at, notice.last_at)
        answer = deliver(receiver, text(news))
        if not answer.ok:
            notices.put_off(db, notice, answer.words)
            log.warning("a notice was not taken", receiver=receiver.name, host=receiver.host, answer=answer.words)
            return counts + Counter(put_off=1)
        notices.sent(db, notice, answer.words)
        counts["delivered"] += 1
    return counts
