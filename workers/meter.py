"""Keeps a provider's calls within its limits: each is reserved in the ledger before it is sent, corrected after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tasks.budget import CHARS_PER_TOKEN, EXPECTED_OUT
from tasks.errors import Busy, Misconfigured, Offline, OutOfReach
from tasks.ledger import usage
from tasks.ledger.database import Database
from tasks.providers import Provider
from workers.asking import Asked
from workers.backends import Call, Reply

#: errors of calls that nobody answered
TURNED_AWAY = (Busy, Offline, Misconfigured, OutOfReach)
#: is given the reply, and gives it back
Took = Callable[[Reply], Reply]


class Meter:
    """One provider's; without a provider it measures nothing."""

    def __init__(self, db: Database | None = None, provider: Provider | None = None) -> None:
        self._db = db
        self._provider = provider

    @asynccontextmanager
    async def measured(self, asked: Asked) -> AsyncIterator[Took]:
        """Around one call; raises Busy at a limit, before anything is sent.

        A call that was turned away cost one request; one that broke keeps its estimate.
        """
        if self._db is None or self._provider is None:
            yield _as_it_is
            return
        call, replies = asked.call, list[Reply]()
        estimate = _tokens(call), call.max_tokens or EXPECTED_OUT
        held = await asyncio.to_thread(usage.reserve, self._db, self._provider, call.model, *estimate)

        def took(reply: Reply) -> Reply:
            replies.append(reply)
            return reply

        actual = 0, 0
        try:
            yield took
            actual = replies[0].tokens_in, replies[0].tokens_out
        except TURNED_AWAY:
            raise
        except BaseException:
            actual = estimate
            raise
        finally:
            await asyncio.to_thread(usage.correct, self._db, self._provider, call.model, held, *actual)


#: of a provider without limits
FREE = Meter()


def _as_it_is(reply: Reply) -> Reply:
    return reply


def _tokens(call: Call) -> int:
    texts = [str(m.get("content") or "") for m in call.messages] + call.inputs + [call.prompt]
    return int(sum(map(len, texts)) / CHARS_PER_TOKEN)
