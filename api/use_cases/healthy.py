"""Whether one role is well, in words: what a container's health check and a person ask."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request

from api.use_cases.pool import Pool
from tasks.ledger import nodes, ticks

#: seconds for a page to answer
PAGE_S = 5.0


def worker_trouble(pool: Pool, provider: str, node: str) -> str:
    """What is wrong with a worker by its heartbeat in the ledger; empty where it lives, whatever its server does."""
    name = f"{node}/{provider}"
    silent = {row.name: ago for row, ago in nodes.seen(pool.db)}.get(name)
    if silent is None:
        return f"{name} is not in the ledger"
    most = pool.settings.times.worker_gone
    return f"{name} was last seen {silent:.0f} s ago, which is more than {most:g} s" if silent > most else ""


def beat_trouble(pool: Pool) -> str:
    """What is wrong with beat by its last sweep; empty where it is well."""
    ago, most = ticks.last_tick(pool.db, "sweep"), ticks.LATE_SWEEPS * pool.settings.times.sweep
    if ago is None:
        return "beat has never ticked"
    return f"beat last ticked {ago:.0f} s ago, which is more than {most:g} s" if ago > most else ""


def page_trouble(url: str) -> str:
    """What is wrong with a page; empty where it answers 200. A proxy of the environment is not asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=PAGE_S) as answer:
            return "" if answer.status == 200 else f"{url} answers {answer.status}"
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{url} does not answer ({type(error).__name__})"
