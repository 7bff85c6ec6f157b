"""Calls that were made without a job: their telemetry, and the few that are kept whole because they may be audited."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import Connection, insert

from tasks.ledger.database import Database, is_unable, retried
from tasks.ledger.record import UNWRITABLE
from tasks.ledger.strata import add_drawn
from tasks.ledger.submit import new_batch_id
from tasks.rollups import hour_of
from tasks.sampling import MORE_OFTEN
from tasks.schemas import NewJob
from tasks.states import BatchState, JobState
from tasks.tables import AT_ONCE, Batch, Body, CallRow, Job, Output

#: the kind of the batches that hold one answered call each
KIND = "direct"

batches = Batch.__table__  # type: ignore[attr-defined]
bodies = Body.__table__  # type: ignore[attr-defined]
calls = CallRow.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]
outputs = Output.__table__  # type: ignore[attr-defined]


@dataclass(slots=True)
class Done:
    """A call, as telemetry has it (empty: none). kept: the job that it would have been, where `draw` chose it."""

    call: dict[str, Any]
    kept: NewJob | None = None
    output: bytes | None = None
    draw: float = 1.0
    facts: dict[str, Any] = field(default_factory=dict)  #: what the job's row says of its answer


def is_drawn(job: NewJob, draw: float) -> bool:
    """Whether a call with this draw, of 0 to 1, is kept: so often as jobs are looked at."""
    return job.audit > 0 and draw < MORE_OFTEN * job.audit


def refused(job: NewJob, now: float) -> Done:
    """What telemetry has of a request that policy and privacy leave nowhere to go. now: unix seconds."""
    return Done(
        {
            "job_id": 0,
            "batch_id": "",
            "fence": 0,
            "category": job.category,
            "model_class": job.model_class,
            "provider": "",
            "node": "",
            "model_asked": job.model or "",
            "started_at": now,
            "duration_ms": 0.0,
            "error_code": "refused",
            "app": job.app,
            "decision": job.route.decision.value,
            "reason": job.route.words,
            "sent": False,
            "ended": JobState.REFUSED,
        }
    )


def record(db: Database, done: list[Done], left_out: Callable[[Exception], None]) -> None:
    """Write what was done, taking it out of the list as it is committed.

    It is one commit, unless it is refused for what it holds: then each is written alone, and one that is refused again
    is left out. left_out: is given the reason. Raises SQLAlchemyError while the ledger can write nothing at all.
    """
    try:
        _write(db, done)
        done.clear()
    except UNWRITABLE as error:
        if is_unable(error):
            raise
    while done:
        try:
            _write(db, done[:1])
        except UNWRITABLE as error:
            if is_unable(error):
                raise
            left_out(error)
        del done[0]


@retried
def _write(db: Database, done: Sequence[Done]) -> None:
    with db.write(durable=False) as c:
        now = db.now(c)
        alike: defaultdict[frozenset[str], list[dict[str, Any]]] = defaultdict(
            list
        )  # one statement has one set of columns
        for call in (one.call for one in done if one.call):
            alike[frozenset(call)].append(call | {"hour": hour_of(call["started_at"] + call["duration_ms"] / 1000)})
        for rows in alike.values():
            c.execute(insert(calls), rows)
        for one in done:
            if one.kept is not None and one.output is not None:
                _keep(c, one, one.kept, now)


def _keep(c: Connection, one: Done, job: NewJob, now: float) -> None:
    batch_id = new_batch_id()
    times = {"created_at": now, "touched_at": now, "opened_at": now, "finished_at": now, "deadline_at": now}
    batch = {"id": batch_id, "kind": KIND, "state": BatchState.FINISHED, "total": 1, "done": 1, **times}
    c.execute(insert(batches).values(**batch))
    row = {
        "batch_id": batch_id,
        "line": 1,
        "line_id": job.line_id,
        "category": job.category,
        "model_class": job.model_class,
        "model": job.model,
        "tier": job.route.tier.value,
        "verdict": orjson.dumps(job.route.verdict) if job.route.verdict else None,
        "decision": job.route.decision.value,
        "app": job.app,
        "state": JobState.DONE,
        "rank": 1,
        "due_at": AT_ONCE,
        "queued_at": now,
        "finished_at": now,
        "attempts": 1,
        **one.facts,
    }
    job_id = c.execute(insert(jobs).returning(jobs.c.id), [row]).scalar_one()
    c.execute(insert(bodies).values(job_id=job_id, body=job.body))
    c.execute(insert(outputs).values(job_id=job_id, fence=0, output=one.output))
    add_drawn(c, job_id, job, one.draw)
