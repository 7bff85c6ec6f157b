"""Fan-outs in the ledger: their rows, where each stands, and the answers that its merges are made of.

    running ──► done        its last step gave the result, or its result needs no step
       ├──────► failed      nothing was answered, the last merge failed, or the merges do not get shorter
       └──────► cancelled   somebody cancelled the batch of a step

A row is written by the commit that opens the first batch, and moves on in the commit that opens the next: there is
never half a fan-out, and of two who move it on at once one finds it done. Its `plan` is what merging needs to know:
how, prompt and category of the merge; asks (category, system, request); shape of the answers; said (tier, audience …).
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import Any

import orjson
from sqlalchemy import Connection, and_, exists, func, insert, or_, select, update
from sqlalchemy.engine import Row

from tasks.errors import Conflict, NotFound
from tasks.ledger.api_batches import Whose
from tasks.ledger.database import IN_LIST, Database, retried
from tasks.merge_texts import label
from tasks.merging import JUDGE, Note, Step, first_notes
from tasks.privacy import Tier, tightest
from tasks.states import ANSWERED, TERMINAL, BatchState
from tasks.tables import Batch, FanOut, Job, Output

batches = Batch.__table__  # type: ignore[attr-defined]
fan_outs = FanOut.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]
outputs = Output.__table__  # type: ignore[attr-defined]


class Stage(StrEnum):
    """How far a fan-out is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a fan-out is once its step is over. notes: the answers there are; missing: what has none, by name."""

    notes: list[Note]
    missing: list[str]
    last: Step | None


def new_id() -> str:
    """An id nobody can guess."""
    return f"fan_{secrets.token_hex(8)}"


def begin(c: Connection, batch_id: str, values: Mapping[str, Any], share: float | None) -> None:
    """Write a fan-out's row beside the commit that opens its first batch. share: of the jobs, whose answers do."""
    row = c.execute(select(batches).where(batches.c.id == batch_id)).one()
    times = {"created_at": row.created_at, "deadline_s": row.deadline_at - row.created_at}
    own = {"batch_id": batch_id, "step_batch_id": batch_id, "state": Stage.RUNNING, "step": 0, "steps": []}
    quorum = None if share is None else ceil(round(share * row.total, 6))
    c.execute(insert(fan_outs).values(**own, **times, priority=row.priority, quorum=quorum, **values))


def move_on(c: Connection, row: Row[Any], batch_id: str, step: Step) -> None:
    """Enter the next step beside the commit that opens its batch; raises Conflict where the row has moved on."""
    kept = {"batch": batch_id, "what": step.what, "parts": step.parts, "notes": step.notes}
    values = {"step": row.step + 1, "step_batch_id": batch_id, "steps": [*row.steps, kept]}
    if c.execute(update(fan_outs).where(*_still(row)).values(**values)).rowcount != 1:
        raise Conflict(f"fan-out {row.id} has moved on")


@retried
def end(db: Database, row: Row[Any], state: Stage, error: str | None = None) -> bool:
    """It is over; whether it was this call that ended it."""
    with db.write() as c:
        values = {"state": state, "finished_at": db.now(c), "error": error}
        return bool(c.execute(update(fan_outs).where(*_still(row)).values(**values)).rowcount)


@retried
def enough(db: Database, row: Row[Any]) -> bool:
    """Note that its quorum has answered, so that cancelling the others does not cancel it; whether this call did.

    Whoever cancelled them before means all of it: then nothing is noted.
    """
    with db.write() as c:
        going_on = exists().where(batches.c.id == row.batch_id, batches.c.cancelled_at.is_(None))
        values = {"enough_at": db.now(c)}
        return bool(c.execute(update(fan_outs).where(*_still(row), going_on).values(**values)).rowcount)


def _still(row: Row[Any]) -> tuple[Any, ...]:
    """The condition that a row is still as it was read."""
    return fan_outs.c.id == row.id, fan_outs.c.step == row.step, fan_outs.c.state == Stage.RUNNING


# --- reading ----------------------------------------------------------------------------------------------


def one(db: Database, fan_out_id: str, whose: Whose | None = None) -> Row[Any]:
    """A fan-out's row; raises NotFound where there is none, or it is another's."""
    query = select(fan_outs).where(fan_outs.c.id == fan_out_id)
    if whose is not None and not whose.everybody:
        query = query.where(fan_outs.c.owner == whose.owner)
    with db.read() as c:
        row = c.execute(query).first()
    if row is None:
        raise NotFound(f"there is no fan-out {fan_out_id[:80]!r}; `offload batches` lists their batches")
    return row


def of_batch(db: Database, batch_id: str) -> str:
    """The fan-out whose inputs are this batch; raises Conflict where it is no fan-out's."""
    with db.read() as c:
        found = c.execute(select(fan_outs.c.id).where(fan_outs.c.batch_id == batch_id)).scalar()
    if found is None:
        raise Conflict(f"the idempotency key was used for batch {batch_id}, which is no fan-out; use a new key")
    return str(found)


def due(db: Database) -> list[str]:
    """Fan-outs that may go on: their step is over, or enough of their inputs have answered; the oldest first."""
    is_over = batches.c.state.in_((BatchState.FINISHED, BatchState.CANCELLED))
    answered = sum((batches.c[state.value] for state in sorted(ANSWERED)), start=0)
    is_enough = and_(fan_outs.c.step == 0, answered >= fan_outs.c.quorum)
    query = (
        select(fan_outs.c.id)
        .join(batches, batches.c.id == fan_outs.c.step_batch_id)
        .where(fan_outs.c.state == Stage.RUNNING, or_(is_over, is_enough))
        .order_by(fan_outs.c.created_at)
    )
    with db.read() as c:
        return list(c.execute(query).scalars())


def batch_ids(row: Row[Any]) -> list[str]:
    """The batches of its steps, in their order; that of the inputs is step 0."""
    return [row.batch_id, *(step["batch"] for step in row.steps)]


def names(row: Row[Any]) -> list[str]:
    """Its inputs' names, in order."""
    return [str(found[0]) for found in row.inputs]


def standing(db: Database, row: Row[Any]) -> Standing:
    """Where a fan-out is; its present step is over."""
    steps = [Step.of(kept) for kept in row.steps]
    ids, called = batch_ids(row), names(row)
    answered = [_answered(db, batch_id) for batch_id in ids]
    missing = _unanswered(db, row.batch_id)
    for number, step in enumerate(steps, 1):
        lost = (part for line, part in enumerate(step.parts, 1) if line not in answered[number])
        missing += [f"the merge of {label(called, part[0]._replace(last=part[-1].last))}" for part in lost]
    raw = steps[-1].notes if steps else first_notes(found[1] for found in row.inputs)
    notes = [note for note in raw if note.line in answered[note.step]]
    return Standing(_picked(db, ids, steps, notes), missing, steps[-1] if steps else None)


def _answered(db: Database, batch_id: str) -> set[int]:
    with db.read() as c:
        query = select(jobs.c.line).where(jobs.c.batch_id == batch_id, jobs.c.state.in_(ANSWERED))
        return set(c.execute(query).scalars())


def _unanswered(db: Database, batch_id: str) -> list[str]:
    """The ids of the inputs' lines that ended without an answer."""
    with db.read() as c:
        query = select(jobs.c.line_id).where(jobs.c.batch_id == batch_id, jobs.c.state.in_(TERMINAL - ANSWERED))
        return list(c.execute(query.order_by(jobs.c.line)).scalars())


def _picked(db: Database, ids: Sequence[str], steps: Sequence[Step], notes: Sequence[Note]) -> list[Note]:
    """The notes, where a judge picked one that one."""
    found = []
    for note in notes:
        if note.step == 0 or steps[note.step - 1].what != JUDGE:
            found.append(note)
            continue
        answer = orjson.loads(answers(db, ids[note.step], [note.line])[note.line].output)
        part = steps[note.step - 1].parts[note.line - 1]
        found.append(part[max(0, min(int(answer["best"]), len(part)) - 1)].whole)
    return found


def why_not(db: Database, batch_id: str) -> str:
    """Why the first of a batch's lines without an answer has none."""
    with db.read() as c:
        query = select(jobs).where(jobs.c.batch_id == batch_id, jobs.c.state.in_(TERMINAL - ANSWERED))
        row = c.execute(query.order_by(jobs.c.line).limit(1)).first()
    return "" if row is None else f"{row.line_id}: {row.state}: {row.error_message}"


def answers(db: Database, batch_id: str, lines: Collection[int]) -> dict[int, Row[Any]]:
    """line -> tier, verdict and output of those of a batch's lines that were answered."""
    wanted = sorted(set(lines))
    found: dict[int, Row[Any]] = {}
    for start in range(0, len(wanted), IN_LIST):
        query = (
            select(jobs.c.line, jobs.c.tier, jobs.c.verdict, outputs.c.output)
            .join(outputs, outputs.c.job_id == jobs.c.id)
            .where(jobs.c.batch_id == batch_id, jobs.c.line.in_(wanted[start : start + IN_LIST]))
        )
        with db.read() as c:
            found |= {row.line: row for row in c.execute(query)}
    return found


def answers_of(db: Database, row: Row[Any], notes: Iterable[Note]) -> dict[tuple[int, int], Row[Any]]:
    """(step, line) -> tier, verdict and output, of all these notes."""
    lines: dict[int, set[int]] = {}
    for note in notes:
        lines.setdefault(note.step, set()).add(note.line)
    ids = batch_ids(row)
    return {(step, line): found for step, some in lines.items() for line, found in answers(db, ids[step], some).items()}


def sizes(db: Database, row: Row[Any]) -> dict[tuple[int, int], int]:
    """(step, line) -> bytes of each answer as JSON, which are no fewer than those of its text."""
    found: dict[tuple[int, int], int] = {}
    for step, batch_id in enumerate(batch_ids(row)):
        query = (
            select(jobs.c.line, func.length(outputs.c.output))
            .join(outputs, outputs.c.job_id == jobs.c.id)
            .where(jobs.c.batch_id == batch_id)
        )
        with db.read() as c:
            found |= {(step, line): size for line, size in c.execute(query)}
    return found


def tier(db: Database, row: Row[Any]) -> Tier | None:
    """The tightest tier of all its jobs, those that failed included: their names are told."""
    with db.read() as c:
        query = select(jobs.c.tier).where(jobs.c.batch_id.in_(batch_ids(row))).distinct()
        return tightest(*map(Tier, c.execute(query).scalars()))
