"""Keeps a provider's calls within its limits: each is reserved in the ledger before it is sent, corrected after it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
from sqlalchemy.exc import SQLAlchemyError

from tasks.budget import CHARS_PER_TOKEN, EXPECTED_OUT
from tasks.errors import Busy, Misconfigured, Offline, OutOfReach, Permanent
from tasks.ledger import usage
from tasks.ledger.database import Database
from tasks.ledger.usage import Reservation
from tasks.providers import Provider
from workers.asking import Asked
from workers.backends import Call, Reply

#: errors of calls that were not sent, and of those that nobody answered
UNSENT = (Offline, OutOfReach)
TURNED_AWAY = (Busy, Misconfigured)
log = structlog.get_logger(__name__)

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

        A call that was turned away cost one request, one that was not sent nothing; one that broke keeps its estimate.
        """
        if self._db is None or self._provider is None:
            yield _as_it_is
            return
        call, replies = asked.call, list[Reply]()
        estimate = _tokens(call), call.max_tokens or EXPECTED_OUT
        held = await self._reserved(call.model, estimate)
        actual: tuple[int, int] | None = estimate
        try:
            yield functools.partial(_took, replies)
            actual = replies[0].tokens_in, replies[0].tokens_out
        except UNSENT:
            actual = None
            raise
        except TURNED_AWAY:
            actual = 0, 0
            raise
        except Permanent as error:
            actual = {"nothing": None, "request": (0, 0), "answer": estimate}[error.had]
            raise
        finally:
            await asyncio.shield(asyncio.to_thread(self._correct, call.model, held, actual))

    async def _reserved(self, model: str, estimate: tuple[int, int]) -> Reservation:
        """A reservation; a call that is closed meanwhile gives it back."""
        assert self._db is not None  # with a provider there is a ledger
        assert self._provider is not None
        reserving = asyncio.ensure_future(asyncio.to_thread(usage.reserve, self._db, self._provider, model, *estimate))
        try:
            return await asyncio.shield(reserving)
        except asyncio.CancelledError:
            reserving.add_done_callback(functools.partial(self._give_back, model))
            raise
        except SQLAlchemyError as error:  # the ledger is away for a moment: the job is not to blame
            raise Busy("ledger_away", f"limits cannot be looked up ({type(error).__name__})") from None

    def _give_back(self, model: str, reserving: asyncio.Future[Reservation]) -> None:
        if not reserving.cancelled() and reserving.exception() is None:
            asyncio.get_running_loop().run_in_executor(None, self._correct, model, reserving.result(), None)

    def _correct(self, model: str, held: Reservation, actual: tuple[int, int] | None) -> None:
        """Put what the call took in its reservation's place; None: it was not sent."""
        assert self._db is not None
        assert self._provider is not None
        try:
            usage.correct(self._db, self._provider, model, held, actual)
        except SQLAlchemyError as error:  # the answer counts for more: the estimate stays
            log.warning("a call's use could not be corrected", error=type(error).__name__)


def _took(replies: list[Reply], reply: Reply) -> Reply:
    replies.append(reply)
    return reply


#: of a provider without limits
FREE = Meter()


def _as_it_is(reply: Reply) -> Reply:
    return reply


def _tokens(call: Call) -> int:
    texts = [str(m.get("content") or "") for m in call.messages] + call.inputs + [call.prompt]
    return int(sum(map(len, texts)) / CHARS_PER_TOKEN)
