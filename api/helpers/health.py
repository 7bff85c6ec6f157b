"""Whether a server answers, looked at once in CACHE_S seconds by all calls of this home together."""

from __future__ import annotations

import time

from api.helpers import kept
from tasks.errors import CallError
from workers.straight import Server, probe

#: seconds
CACHE_S = 10.0
KEPT = "health.json"


def is_healthy(server: Server) -> bool:
    """Whether it answers now, or did so (or did not) a moment ago."""
    found = kept.read(KEPT)
    now = time.time()
    known = found.get(server.url)
    if isinstance(known, list) and _is_fresh(known, now):
        return bool(known[1])
    healthy = _answers(server)
    fresh = {url: one for url, one in found.items() if isinstance(one, list) and _is_fresh(one, now)}
    kept.write(KEPT, fresh | {server.url: [now, healthy]})
    return healthy


def _is_fresh(known: list[object], now: float) -> bool:
    at = known[0] if len(known) == 2 else None
    return isinstance(at, float) and 0 <= now - at < CACHE_S  # a clock that was set back proves nothing


def _answers(server: Server) -> bool:
    try:
        probe(server)
    except CallError:
        return False
    return True
