"""Recording what calls ended in: groups in one commit, each row only under the fence it was claimed with."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.sql.elements import ColumnElement

from tasks.ledger.claims import still_held
from tasks.ledger.database import Database, is_unable, parts
from tasks.ledger.endings import count_ended
from tasks.ledger.fallbacks import tell_fallbacks
from tasks.ledger.unsent import note_unsent
from tasks.registry import CLOUD
from tasks.rollups import hour_of
from tasks.routing import Decision
from tasks.states import COUNTED, TERMINAL, JobState
from tasks.tables import AT_ONCE, CallRow, Job, Output

#: tries of a group before it is written row by row
GROUP_TRIES = 4
#: how a row is refused for what it holds: by the database, or by its driver (a lone surrogate, an integer over 64 bits,
#: a value of another type than its column's)
UNWRITABLE = (StatementError, ValueError, OverflowError, TypeError)

jobs = Job.__table__  # type: ignore[attr-defined]
outputs = Output.__table__  # type: ignore[attr-defined]
calls = CallRow.__table__  # type: ignore[attr-defined]


@dataclass(slots=True)
class Outcome:
    """What became of one job in a worker's hand.

    state: a terminal one, or QUEUED to run again `delay` seconds from now. `call` holds the columns of the call
    row, None where nothing was sent. `attempts` is how many attempts it burned, 0 or 1. `output` is JSON.
    `escalation` says why it goes on to class `cloud`, with its attempts counted anew; `tier` what its privacy was
    tightened to.
    """

    job_id: int
    fence: int
    batch_id: str
    state: JobState
    output: bytes | None = None
    error_code: str | None = None
    error_message: str | None = None
    attempts: int = 0
    delay: float = 0.0
    call: dict[str, Any] | None = None
    served_model: str | None = None
    provider: str | None = None
    node: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    duration_ms: float | None = None
    escalation: str | None = None
    tier: str | None = None
    unsure: bool = False  #: it may be in the ledger already: a connection broke, maybe in its commit


_UPDATE = (
    update(jobs)
    .where(jobs.c.id == bindparam("b_id"), jobs.c.fence == bindparam("b_fence"), jobs.c.state == JobState.RUNNING)
    .values(
        state=bindparam("b_state"),
        attempts=jobs.c.attempts + bindparam("b_attempts"),
        due_at=bindparam("b_due"),
        queued_at=bindparam("b_queued"),
        lease_until=None,
        started_at=None,
        finished_at=bindparam("b_finished"),
        served_model=bindparam("b_model"),
        provider=bindparam("b_provider"),
        node=bindparam("b_node"),
        tokens_in=bindparam("b_in"),
        tokens_out=bindparam("b_out"),
        duration_ms=bindparam("b_ms"),
        error_code=bindparam("b_code"),
        error_message=bindparam("b_message"),
        tier=func.coalesce(bindparam("b_tier"), jobs.c.tier),
    )
)


def record(db: Database, outcomes: list[Outcome]) -> int:
    """Write a group of outcomes, taking each out of the list as it is committed; returns how many were stale.

    State, output, call row and the batch's counters are one commit. A stale outcome changes nothing but leaves
    its call row, marked. A group that keeps failing is written row by row, so that one bad row harms itself only;
    such a row ends failed with code `unrecordable`. What a connection that broke may have committed is looked up before
    it is written again, in this call or a later one. Raises DBAPIError while the ledger can write nothing at all.
    """
    for attempt in range(GROUP_TRIES):
        try:
            stale = _record(db, outcomes)
            outcomes.clear()
            return stale
        except UNWRITABLE as error:
            if not is_unable(error):
                break
            if attempt == GROUP_TRIES - 1:
                raise
            time.sleep(0.05 * 2**attempt)
    stale = 0
    while outcomes:
        stale += _record_alone(db, outcomes[0])
        del outcomes[0]
    return stale


def _record_alone(db: Database, outcome: Outcome) -> int:
    try:
        return _record(db, [outcome])
    except UNWRITABLE as error:  # whichever of its fields it was: what is written instead has none of them
        if is_unable(error):
            raise
        reason = type(getattr(error, "orig", None) or error).__name__
        bare = Outcome(
            outcome.job_id,
            outcome.fence,
            outcome.batch_id,
            JobState.FAILED,
            error_code="unrecordable",
            error_message=f"the ledger refused the result ({reason})",
            attempts=outcome.attempts,
        )
        return _record(db, [bare])


def _record(db: Database, outcomes: Sequence[Outcome]) -> int:
    try:
        return _write(db, sorted(outcomes, key=lambda o: o.job_id))
    except DBAPIError as error:
        for o in outcomes:
            o.unsure |= error.connection_invalidated
        raise


def _write(db: Database, ordered: list[Outcome]) -> int:
    with db.write() as c:
        now = db.now(c)
        held = still_held(c, [o.job_id for o in ordered])  # waits for a commit of ours that is still under way
        ordered = _unwritten(c, ordered)
        fresh = _fresh(ordered, held)
        stale = {id(o) for o in ordered} - {id(o) for o in fresh}
        if fresh:
            c.execute(_UPDATE, [_parameters(o, now) for o in fresh])
        for o in fresh:
            if o.escalation is not None:
                escalate(c, jobs.c.id == o.job_id, o.escalation)
        _write_outputs(c, fresh)
        tell_fallbacks(c, now, fresh)
        if rows := [_call(o, id(o) in stale) for o in ordered if o.call is not None]:
            c.execute(insert(calls), rows)
        for some in parts([o.job_id for o in fresh if o.call is None and o.state in COUNTED]):
            note_unsent(c, now, jobs.c.id.in_(some))
        ended: defaultdict[str, Counter[JobState]] = defaultdict(Counter)
        for o in fresh:
            if o.state in TERMINAL:
                ended[o.batch_id][o.state] += 1
        count_ended(c, ended, now)
    return len(stale)


def _call(o: Outcome, stale: bool) -> dict[str, Any]:
    """An outcome's call row; what only a commit decides is added: whether it counts, and what it ended."""
    assert o.call is not None
    row = o.call | {"stale": stale, "ended": o.state.value if o.state in COUNTED and not stale else None}
    row["hour"] = hour_of(row["started_at"] + row.get("duration_ms", 0) / 1000)
    row["avoided_usd"] = row.get("avoided_usd", 0.0) if row["ended"] == JobState.DONE else 0.0
    return row


def _fresh(outcomes: Sequence[Outcome], held: Mapping[int, int]) -> list[Outcome]:
    """Those whose claim still holds; of two results of one claim the first."""
    found: dict[int, Outcome] = {}
    for o in outcomes:
        if held.get(o.job_id) == o.fence:
            found.setdefault(o.job_id, o)
    return list(found.values())


def _unwritten(c: Connection, outcomes: list[Outcome]) -> list[Outcome]:
    """Those whose call row is not there: job, fence, start. One without a call changes nothing the second time."""
    there: set[tuple[int, int, float]] = set()
    for some in parts([o.job_id for o in outcomes if o.unsure]):
        query = select(calls.c.job_id, calls.c.fence, calls.c.started_at).where(calls.c.job_id.in_(some))
        there.update((row.job_id, row.fence, row.started_at) for row in c.execute(query))
    return [o for o in outcomes if o.call is None or (o.job_id, o.fence, o.call["started_at"]) not in there]


def escalate(c: Connection, which: ColumnElement[bool], why: str) -> int:
    """Send queued jobs on to class `cloud`; the same rows, with attempts of their own there. Returns how many."""
    return c.execute(
        update(jobs)
        .where(which, jobs.c.state == JobState.QUEUED)
        .values(
            escalated_from=jobs.c.model_class,
            model_class=CLOUD,
            escalation=why,
            decision=Decision.FALLBACK.value,
            attempts=0,
        )
    ).rowcount


def _write_outputs(c: Connection, fresh: Sequence[Outcome]) -> None:
    rows = [{"job_id": o.job_id, "fence": o.fence, "output": o.output} for o in fresh if o.output is not None]
    if rows:
        c.execute(insert(outputs), rows)


def _parameters(o: Outcome, now: float) -> dict[str, Any]:
    terminal = o.state in TERMINAL
    return {
        "b_id": o.job_id,
        "b_fence": o.fence,
        "b_state": o.state,
        "b_attempts": o.attempts,
        "b_due": now + o.delay if o.delay else AT_ONCE,
        "b_queued": now + o.delay,
        "b_finished": now if terminal else None,
        "b_model": o.served_model,
        "b_provider": o.provider,
        "b_node": o.node,
        "b_in": o.tokens_in,
        "b_out": o.tokens_out,
        "b_ms": o.duration_ms,
        "b_code": o.error_code,
        "b_message": o.error_message,
        "b_tier": o.tier,
    }
