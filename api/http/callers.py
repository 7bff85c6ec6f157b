"""Who asks: a key's scopes and limits, or anybody on this machine while no key was made."""

from __future__ import annotations

import hmac
import threading
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request
from sqlalchemy import Row
from starlette.concurrency import run_in_threadpool

from api.http.errors import ApiError
from api.use_cases.pool import Pool
from tasks.ledger import api_batches, api_keys
from tasks.ledger.api_batches import Whose
from tasks.ledger.api_keys import Scope
from tasks.privacy import Tier, tightest
from tasks.routing import Said

#: seconds for which a key, or that there is none, is remembered: so long a revoked one may still be used
REMEMBERED_S = 2.0
#: seconds over which requests are counted
MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Caller:
    """One who may use the API. owner: of what is submitted; empty where the API is open."""

    owner: str
    name: str
    scopes: frozenset[Scope]
    most_queued: int | None = None
    per_minute: int | None = None
    ceiling: Tier | None = None

    @property
    def whose(self) -> Whose:
        """What it may see."""
        return Whose(self.owner, everybody=Scope.ADMIN in self.scopes)

    def key(self, said: str | None) -> str | None:
        """Its idempotency key as the ledger keeps it: another's is another one. said: what the request says."""
        return f"{self.owner}:{said}" if said else None

    def said(self, tier: Tier | None = None, app: str | None = None) -> Said:
        """What holds for all that it submits. tier, app: what the request says."""
        return Said(tier=tightest(self.ceiling, tier), app=app or self.name or None)


#: everybody on this machine, while no key was made
ANYBODY = Caller("", "", frozenset(Scope))
#: whoever has the key of OFFLOAD_API_KEY
OPERATOR = Caller("operator", "", frozenset(Scope))


class Callers:
    """Looks keys up, and counts requests."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        key = pool.settings.api_key
        self._operators = None if key is None else api_keys.hashed(key.get_secret_value())
        self._known: dict[str, tuple[float, Caller | None]] = {}
        self._open: tuple[float, bool] = (0.0, False)
        self._asked: defaultdict[str, deque[float]] = defaultdict(deque)

    async def of(self, request: Request) -> Caller:
        """The caller; raises ApiError for one who is none. What is not remembered is looked up on another thread."""
        key = _key(request)
        is_open = self._remembers_open()
        if is_open is None:
            is_open = await run_in_threadpool(self._look_open)
        if is_open:
            _check_host(request)
            return ANYBODY
        if key is None:
            raise ApiError(401, "You did not provide an API key.", code="missing_api_key", headers=_BEARER)
        hashed = api_keys.hashed(key)
        until, caller = self._known.get(hashed, (0.0, None))
        if time.monotonic() > until:
            caller = await run_in_threadpool(self._look, key, hashed)
        if caller is None:
            raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key", headers=_BEARER)
        self._count(caller)
        return caller

    def check_room(self, caller: Caller, key: str | None = None) -> None:
        """Raise QueueFull where the caller has as many unfinished jobs as it may have, before its new ones are read.

        key: of its submit, which when it is repeated brings no new ones.
        """
        if caller.most_queued is not None and not (key and api_batches.is_used(self._pool.db, key)):
            api_batches.check_room(self._pool.db, caller.owner, caller.most_queued)

    def _remembers_open(self) -> bool | None:
        """Whether no key is needed; None where it must be looked up."""
        until, is_open = self._open
        return None if time.monotonic() > until else is_open

    def _look_open(self) -> bool:
        is_open = self._operators is None and not api_keys.any_made(self._pool.db)
        self._open = (time.monotonic() + REMEMBERED_S, is_open)
        return is_open

    def _look(self, key: str, hashed: str) -> Caller | None:
        if self._operators is not None and hmac.compare_digest(hashed, self._operators):
            caller: Caller | None = OPERATOR
        else:
            row = api_keys.find(self._pool.db, key)
            caller = None if row is None else _caller(row)
        with self._lock:
            if len(self._known) > 10_000:  # somebody tries keys
                self._known.clear()
            self._known[hashed] = (time.monotonic() + REMEMBERED_S, caller)
        return caller

    def _count(self, caller: Caller) -> None:
        if caller.per_minute is None:
            return
        with self._lock:
            asked, now = self._asked[caller.owner], time.monotonic()
            while asked and asked[0] <= now - MINUTE_S:
                asked.popleft()
            if len(asked) >= caller.per_minute:
                wait = max(1, round(asked[0] + MINUTE_S - now)) if asked else 60
                words = f"This key may ask {caller.per_minute} times a minute."
                raise ApiError(429, words, code="rate_limit_exceeded", headers={"retry-after": str(wait)})
            asked.append(now)


def _caller(row: Row[Any]) -> Caller:
    ceiling = Tier(row.ceiling) if row.ceiling else None
    scopes = frozenset(map(Scope, row.scopes))
    return Caller(row.id, row.name, scopes, row.most_queued, row.per_minute, ceiling)


_BEARER = {"www-authenticate": "Bearer"}


def _key(request: Request) -> str | None:
    """The key, as OpenAI's clients send it or as Anthropic's do."""
    kind, _, key = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key.strip():
        return key.strip()
    return request.headers.get("x-api-key") or None


def _check_host(request: Request) -> None:
    """While the API is open it answers this machine only, and no web page but its own.

    A page may reach it under a name of its own (DNS rebinding), or post to it without reading the answer.
    """
    peer = request.client.host if request.client else ""
    origin = request.headers.get("origin")
    pages = [] if origin is None else [_host(origin)]
    asked = _host(f"//{request.headers.get('host', '')}")  # of an odd one Starlette would make this server's own
    if not all(map(_is_here, (peer, asked, *pages))):
        raise ApiError(403, "Without keys this API answers to local addresses only: offload keys create")


def _host(address: str) -> str:
    """The host of an address, or nothing where it is none."""
    try:
        parts = urlsplit(address)
        return (parts.hostname or "") if not (parts.path or parts.netloc.endswith(":") or parts.port == 0) else ""
    except ValueError:
        return ""


@lru_cache(maxsize=256)
def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def needs(scope: Scope) -> Callable[[Request], Awaitable[Caller]]:
    """A dependency: the caller, who must have this scope."""

    async def caller(request: Request) -> Caller:
        known: Caller | None = getattr(request.state, "caller", None)  # see KeyFirst; one request counts once
        found: Caller = known or await request.app.state.callers.of(request)
        if scope not in found.scopes and Scope.ADMIN not in found.scopes:
            raise ApiError(403, f"This key may not do that: it needs the scope {scope}.", code="missing_scope")
        return found

    return caller
