"""Fallbacks that fired: work that one had failed at and another has, as news in the commit that makes it so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from sqlalchemy import Connection, select

from tasks.ledger.database import parts
from tasks.ledger.events import tell
from tasks.notices import Kind, News, gathered
from tasks.registry import CLOUD
from tasks.states import ANSWERED, JobState
from tasks.tables import CallRow

#: errors of calls that were turned away or closed by us: who has them did not fail
NO_FAILURES = ("busy", "closed", "ledger_away", "limit_reached", "loading", "rate_limited")

calls = CallRow.__table__  # type: ignore[attr-defined]


class Ended(Protocol):
    """What is looked at of an outcome (record.Outcome)."""

    job_id: int
    fence: int
    state: JobState
    error_code: str | None
    escalation: str | None
    call: dict[str, Any] | None


def fell_back(failed: str, used: str, why: str, times: int = 1) -> News:
    """`used` has the work of `failed`. why: an error's code."""
    return News(Kind.FALLBACK, f"{failed} to {used}", {"failed": failed, "used": used, "why": why}, times)


def tell_fallbacks(c: Connection, now: float, fresh: Sequence[Ended]) -> None:
    """Tell what became of a group of outcomes: sent on to the cloud, or answered by another than who failed at it."""
    tell(c, now, *gathered([*_sent_on(fresh), *_answered_elsewhere(c, fresh)]))


def _sent_on(fresh: Sequence[Ended]) -> Iterator[News]:
    for o in fresh:
        if o.escalation is not None and o.call is not None:
            yield fell_back(f"class {o.call['model_class']}", f"class {CLOUD}", o.error_code or "failed")


def _answered_elsewhere(c: Connection, fresh: Sequence[Ended]) -> Iterator[News]:
    again = {o.job_id: o.call for o in fresh if o.fence > 1 and o.state in ANSWERED and o.call is not None}
    before: dict[int, Any] = {}
    for some in parts(list(again)):
        failed = calls.c.error_code.is_not(None), calls.c.error_code.not_in(NO_FAILURES), calls.c.stale.is_(False)
        query = select(calls).where(calls.c.job_id.in_(some), *failed).order_by(calls.c.id)
        before |= {row.job_id: row for row in c.execute(query)}
    for job_id, row in before.items():
        used = again[job_id]
        who, whom = f"{used['node']}/{used['provider']}", f"{row.node}/{row.provider}"
        if who != whom and row.model_class == used["model_class"]:
            yield fell_back(whom, who, row.error_code)
