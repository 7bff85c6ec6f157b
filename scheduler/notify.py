"""Tells people what happened: looks, makes notices of what is news, and sends those that are due.

Receivers are served side by side, each until it fails once in a run or the run has lasted long enough: one that is
dead, slow or hangs takes seconds of this service's own threads, and nobody else's.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from scheduler import watch
from scheduler.receivers import Receiver, deliver, receivers
from tasks.ledger import notices
from tasks.ledger.database import Database
from tasks.notices import News, text
from tasks.registry import Registry
from tasks.settings import Times

#: seconds after which a run begins no delivery; what is due then waits for the next one, so that looks stay frequent
RUN_S = 10.0

log = structlog.get_logger(__name__)


def run_once(db: Database, registry: Registry, times: Times) -> Counter[str]:
    """One run; the counts say how much was news, and how many notices were delivered, put off and given up."""
    watch.run_once(db, registry, times)
    counts = Counter(news=notices.make(db, registry.notify.receivers, registry.notify.quiet_s))
    if there := receivers(registry.notify):
        with ThreadPoolExecutor(len(there)) as threads:
            counts = sum(threads.map(partial(send_due, db), there), counts)
    counts["given_up"] = notices.give_up(db)
    return +counts


def send_due(db: Database, receiver: Receiver) -> Counter[str]:
    """Send a receiver what is due, what was tried least first, until it does not take one or RUN_S have passed."""
    counts: Counter[str] = Counter()
    until = time.monotonic() + RUN_S
    while time.monotonic() < until and (notice := notices.claim(db, receiver.name)) is not None:
        news = News(notice.kind, notice.subject, notice.detail, notice.times, notice.first_at, notice.last_at)
        answer = deliver(receiver, text(news))
        if not answer.ok:
            notices.put_off(db, notice, answer.words)
            log.warning("a notice was not taken", receiver=receiver.name, host=receiver.host, answer=answer.words)
            return counts + Counter(put_off=1)
        notices.sent(db, notice, answer.words)
        counts["delivered"] += 1
    return counts
