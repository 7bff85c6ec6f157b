"""What must hold in every ledger at every moment, as questions to it: each answer is what breaks it.

Every question is one statement, so that what others write meanwhile is seen whole or not at all; and each looks at a
bounded number of rows, so that nobody waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, case, exists, func, or_, select
from sqlalchemy.engine import Row

from tasks.ledger.database import Database
from tasks.states import ANSWERED, LIVE, TERMINAL, BatchState, JobState
from tasks.tables import IS_OUT, Audit, Batch, Body, CallRow, Dependency, Job, Output, Sample, Slice

#: job ids, and batches, that one question looks at
JOBS, BATCHES = 20_000, 20
#: seconds after which a lease that is over should have been taken back by some sweep
LATE_S = 30.0

audits = Audit.__table__  # type: ignore[attr-defined]
batches = Batch.__table__  # type: ignore[attr-defined]
bodies = Body.__table__  # type: ignore[attr-defined]
calls = CallRow.__table__  # type: ignore[attr-defined]
dependencies = Dependency.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]
outputs = Output.__table__  # type: ignore[attr-defined]
samples = Sample.__table__  # type: ignore[attr-defined]
slices = Slice.__table__  # type: ignore[attr-defined]


#: what mends a damage that `mending` can, and what can be done about others
MENDED = "offload doctor --deep --fix"
LOST = "submit these lines again, and restore the ledger from a copy if there is one"
REPORT = "nothing acts on it by itself; keep a copy of the ledger and report it"


@dataclass(frozen=True)
class Rule:
    """What may be wrong with a job. ids: the column of its id; wrong: the condition; words: it, for people."""

    name: str
    ids: ColumnElement[int]
    wrong: ColumnElement[bool]
    words: str
    fix: str = REPORT


def rules(most_attempts: Mapping[str, int]) -> list[Rule]:
    """Every rule of single jobs. most_attempts: of each category that is configured."""
    return [*_states(), *_answers(), *_attempts(most_attempts), *_calls(), *_references()]


def _states() -> Iterator[Rule]:
    dispatched, running = jobs.c.state == JobState.DISPATCHED, jobs.c.state == JobState.RUNNING
    stray = case((dispatched, ~exists().where(slices.c.id == jobs.c.slice_id)), else_=jobs.c.slice_id.is_not(None))
    yield Rule("slices of jobs", jobs.c.id, stray, "sent in no slice that is there, or in a slice and not sent", MENDED)
    unleased = case((running, jobs.c.lease_until.is_(None)), else_=jobs.c.lease_until.is_not(None))
    yield Rule("leases", jobs.c.id, unleased, "running without a lease, or leased and not running", MENDED)
    untimed = case((jobs.c.state.in_(TERMINAL), jobs.c.finished_at.is_(None)), else_=jobs.c.finished_at.is_not(None))
    yield Rule("ends", jobs.c.id, untimed, "ended without a time, or with one and not ended")
    yield Rule("states", jobs.c.id, jobs.c.state.not_in(list(JobState)), "in a state that there is not", LOST)


def _answers() -> Iterator[Rule]:
    answered = jobs.c.state.in_(ANSWERED)
    has = exists().where(outputs.c.job_id == jobs.c.id)
    yield Rule("answers", jobs.c.id, and_(answered, ~has), "done, and the answer is not there", LOST)
    yield Rule("answers too many", jobs.c.id, and_(~answered, has), "answered, and not done")
    other = exists().where(outputs.c.job_id == jobs.c.id, outputs.c.fence != jobs.c.fence)
    yield Rule("fences", jobs.c.id, other, "answered under another fence than its own")


def _attempts(most: Mapping[str, int]) -> Iterator[Rule]:
    if most:
        over = or_(*(and_(jobs.c.category == name, jobs.c.attempts > n) for name, n in most.items()))
        fix = "none is needed if the category's attempts were lowered since; else report it"
        yield Rule("attempts", jobs.c.id, over, "more attempts than the category has", fix)


def _calls() -> Iterator[Rule]:
    first = calls.alias("first")
    same = first.c.job_id == calls.c.job_id, first.c.fence == calls.c.fence, first.c.id < calls.c.id
    twice = and_(~calls.c.stale, exists().where(*same, ~first.c.stale))
    yield Rule("calls", calls.c.job_id, twice, "two calls under one fence, neither marked stale")
    ahead = exists().where(jobs.c.id == calls.c.job_id, jobs.c.fence < calls.c.fence)
    yield Rule("fences of calls", calls.c.job_id, ahead, "called under a fence that it never had")


def _references() -> Iterator[Rule]:
    batchless = ~exists().where(batches.c.id == jobs.c.batch_id)
    yield Rule("batches of jobs", jobs.c.id, batchless, "of a batch that is not there", LOST)
    bodiless = ~exists().where(bodies.c.job_id == jobs.c.id)
    yield Rule("bodies", jobs.c.id, bodiless, "what it asks is not there", LOST)
    for name, column in (
        ("jobs of bodies", bodies.c.job_id),
        ("jobs of answers", outputs.c.job_id),
        ("jobs of samples", samples.c.job_id),
        ("jobs of audits", audits.c.job_id),
        ("jobs that ask auditors", audits.c.asked_job_id),
    ):
        yield Rule(name, column, ~exists().where(jobs.c.id == column), "named, and not in the ledger")


def highest_job(db: Database) -> int:
    """The highest job id that any table names."""
    named = (jobs.c.id, bodies.c.job_id, outputs.c.job_id, samples.c.job_id, audits.c.job_id, audits.c.asked_job_id)
    with db.read() as c:
        return max(c.execute(select(func.max(column))).scalar() or 0 for column in (*named, calls.c.job_id))


def broken(db: Database, rule: Rule, after: int) -> list[int]:
    """The ids that break a rule among the JOBS ids behind `after`."""
    query = select(rule.ids).where(rule.ids > after, rule.ids <= after + JOBS, rule.wrong).distinct()
    with db.read() as c:
        return sorted(c.execute(query).scalars())


def called(db: Database, ids: Collection[int]) -> list[str]:
    """What people call these jobs."""
    with db.read() as c:
        found = c.execute(select(jobs.c.id, jobs.c.batch_id, jobs.c.line).where(jobs.c.id.in_(ids))).all()
    there = {row.id: f"{row.batch_id} line {row.line}" for row in found}
    return [there.get(i, f"job {i}") for i in ids]


def batch_pages(db: Database) -> Iterator[list[str]]:
    """The ids of all batches, BATCHES at once."""
    last = ""
    while True:
        with db.read() as c:
            query = select(batches.c.id).where(batches.c.id > last).order_by(batches.c.id).limit(BATCHES)
            page = list(c.execute(query).scalars())
        if not page:
            return
        yield page
        last = page[-1]


def miscounted(db: Database, ids: Collection[str]) -> dict[str, str]:
    """Those of the batches whose counters or state are not what their jobs say, and how so."""
    query = (
        select(batches, jobs.c.state.label("job_state"), func.count(jobs.c.id).label("n"))
        .outerjoin_from(batches, jobs, jobs.c.batch_id == batches.c.id)
        .where(batches.c.id.in_(ids))
        .group_by(batches.c.id, jobs.c.state)
    )
    found: dict[str, Counter[str]] = {}
    rows: dict[str, Row[Any]] = {}
    with db.read() as c:
        for row in c.execute(query).all():
            rows[row.id] = row
            found.setdefault(row.id, Counter())[row.job_state or ""] += row.n
    return {i: words for i, row in rows.items() if (words := _differences(row, found[i]))}


def _differences(row: Row[Any], states: Counter[str]) -> str:
    live = sum(states[s] for s in LIVE)
    there = {"total": states.total(), "open": live} | {s.value: states[s] for s in sorted(TERMINAL)}
    words = [f"{name} says {getattr(row, name)}, there are {n}" for name, n in there.items() if getattr(row, name) != n]
    over = row.state in (BatchState.FINISHED, BatchState.CANCELLED)
    if over and live:
        words.append(f"it is {row.state}, and {live} jobs have not ended")
    if row.state == BatchState.OPEN and not live:
        words.append("it is open, and every job has ended")
    if over != (row.finished_at is not None):
        words.append("its end and the time of its end do not agree")
    return "; ".join(words)


def missing_batches(db: Database) -> list[str]:
    """Batches that name one that is not there: to wait for, or to be a retry of."""
    needed = batches.alias("needed")
    waits = select(dependencies.c.batch_id, dependencies.c.needs).where(
        ~exists().where(needed.c.id == dependencies.c.needs)
    )
    again = select(batches.c.id, batches.c.retry_of).where(
        batches.c.retry_of.is_not(None), ~exists().where(needed.c.id == batches.c.retry_of)
    )
    with db.read() as c:
        words = [f"{waiting} waits for {gone}" for waiting, gone in c.execute(waits.order_by(dependencies.c.batch_id))]
        return words + [f"{retry} is a retry of {gone}" for retry, gone in c.execute(again.order_by(batches.c.id))]


def left_lying(db: Database) -> set[str]:
    """What some sweep should have mended by now: slices without jobs, and leases that were over long ago."""
    empty = ~exists().where(jobs.c.slice_id == slices.c.id, jobs.c.state == JobState.DISPATCHED)
    with db.read() as c:
        late = db.now(c) - LATE_S
        over = select(jobs.c.id).where(IS_OUT, jobs.c.state == JobState.RUNNING, jobs.c.lease_until < late)
        found = {f"slice {i} has no job" for i in c.execute(select(slices.c.id).where(empty)).scalars()}
        return found | {f"the lease of job {i} is over" for i in c.execute(over.limit(JOBS)).scalars()}
