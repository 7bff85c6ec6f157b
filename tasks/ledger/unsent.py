"""Jobs that end without a request: refused ones, and those that could not be sent. Telemetry counts them, too."""

from __future__ import annotations

from sqlalchemy import Connection, case, func, insert, literal, null, select, true
from sqlalchemy.sql.elements import ColumnElement

from tasks.rollups import hour_of
from tasks.routing import Decision
from tasks.states import JobState
from tasks.tables import CallRow, Job

calls = CallRow.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]


def note_unsent(c: Connection, now: float, *which: ColumnElement[bool]) -> None:
    """Leave a row in `calls` for each of these jobs, which ended just now and sent nothing."""
    refused = jobs.c.state == JobState.REFUSED
    zero = literal(0.0)
    values = {
        "job_id": jobs.c.id,
        "batch_id": jobs.c.batch_id,
        "fence": jobs.c.fence,
        "category": jobs.c.category,
        "model_class": jobs.c.model_class,
        "provider": func.coalesce(jobs.c.provider, ""),
        "node": func.coalesce(jobs.c.node, ""),
        "model_asked": func.coalesce(jobs.c.model, ""),
        "started_at": literal(now),
        "duration_ms": zero,
        "load_ms": zero,
        "first_token_ms": zero,
        "tokens_in": literal(0),
        "tokens_out": literal(0),
        "leaked": ~true(),
        "error_code": jobs.c.error_code,
        "stale": ~true(),
        "hour": literal(hour_of(now)),
        "app": jobs.c.app,
        "decision": case((refused, Decision.REFUSE.value), else_=jobs.c.decision),
        "reason": case((refused, jobs.c.error_message), else_=jobs.c.escalation),
        "attempt": jobs.c.attempts,
        "sent": ~true(),
        "ended": jobs.c.state,
        "validated": null(),
    }
    c.execute(insert(calls).from_select(list(values), select(*values.values()).where(*which)))
