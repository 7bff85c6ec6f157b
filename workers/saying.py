"""What the log says of jobs: ids, codes and sizes; never what a server was asked, nor what it said."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import structlog

from tasks.ledger.claims import Claimed
from tasks.ledger.record import Outcome
from tasks.states import ANSWERED, TERMINAL

#: batches that one line names
MOST_NAMED = 10

log = structlog.get_logger(__name__)


def say(outcome: Outcome, job: Claimed) -> None:
    """A line about what became of a job; its id and its batch's are bound where this is called."""
    attempt, ms = job.attempts + 1, round(outcome.duration_ms or 0)
    if outcome.state in ANSWERED:
        log.debug("a job is done", attempt=attempt, ms=ms, tokens=outcome.tokens_out)
    elif outcome.state in TERMINAL:
        log.warning("a job failed", attempt=attempt, ms=ms, error=outcome.error_code, state=outcome.state.value)
    elif outcome.attempts:
        log.info("an attempt failed", attempt=attempt, ms=ms, error=outcome.error_code, delay=round(outcome.delay, 1))
    else:
        log.debug("a job waits again", error=outcome.error_code, delay=round(outcome.delay, 1))


def named(batches: Iterable[str]) -> list[str]:
    """Some of these batches, each once."""
    return sorted(set(batches))[:MOST_NAMED]


def unheard(_loop: asyncio.AbstractEventLoop, what: dict[str, Any]) -> None:
    """A fault in a callback, or in a task that nobody waited for; asyncio's own line would quote it."""
    error = what.get("exception")
    at = where(error) if isinstance(error, BaseException) else "?"
    log.error("a fault on the loop", says=what["message"], error=type(error).__name__, where=at)


def where(error: BaseException) -> str:
    """File and line of a fault of ours; its message is not shown, because it may hold a prompt."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return "?" if frame is None else f"{frame.tb_frame.f_code.co_filename.rpartition('/')[2]}:{frame.tb_lineno}"
