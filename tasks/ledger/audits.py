"""Second opinions in the ledger: chosen, asked, judged; and the state of each stratum's test.

sample ──► chosen ──► asked ──► judged
   │          └─────────┴────► person ──► judged
   └► forgotten: not drawn, or the job was not done by a local model
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson
from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.engine import Row

from tasks.auditing import Audited, Opinion
from tasks.errors import NotFound
from tasks.ledger.database import Database, retried
from tasks.ledger.events import tell
from tasks.ledger.rollups import audit_judged
from tasks.notices import Kind, News
from tasks.privacy import Tier
from tasks.sampling import CusumState, advance, probability, replay
from tasks.states import TERMINAL, JobState
from tasks.tables import Audit, Body, Event, Job, Output, Sample, Stratum

#: jobs one transaction looks at
CHUNK = 500
#: what counts for the share and the test
VERDICTS = (Opinion.AGREE.value, Opinion.DISAGREE.value)

audits = Audit.__table__  # type: ignore[attr-defined]
bodies = Body.__table__  # type: ignore[attr-defined]
events = Event.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]
outputs = Output.__table__  # type: ignore[attr-defined]
samples = Sample.__table__  # type: ignore[attr-defined]
strata = Stratum.__table__  # type: ignore[attr-defined]


@retried
def choose(db: Database) -> int:
    """Decide on every sample whose job has ended; the count of those chosen."""
    total = 0
    ended: Any = (
        select(samples, jobs.c.state, jobs.c.batch_id, jobs.c.category, jobs.c.model_class, jobs.c.served_model)
        .join(jobs, jobs.c.id == samples.c.job_id)
        .where(jobs.c.state.in_(TERMINAL))
        .order_by(samples.c.job_id)
    )
    while True:
        with db.read() as c:  # it may look through every open job's: without the write lock
            ids = [row.job_id for row in c.execute(ended.limit(CHUNK))]
        if not ids:
            return total
        with db.write() as c:
            mine = ended.where(samples.c.job_id.in_(ids)).with_for_update(of=samples, skip_locked=True)
            rows = c.execute(mine).all()
            ids = [row.job_id for row in rows]
            chosen = list(_chosen(c, [row for row in rows if row.state == JobState.DONE], db.now(c)))
            if chosen:
                c.execute(insert(audits), chosen)
            c.execute(delete(samples).where(samples.c.job_id.in_(ids)))
        total += len(chosen)


def _chosen(c: Connection, done: Sequence[Row[Any]], now: float) -> Iterator[dict[str, Any]]:
    wanted = {row.stratum for row in done}
    query = select(strata.c.id, strata.c.statistic).where(strata.c.id.in_(wanted))
    statistics: dict[str, float] = dict(c.execute(query).all()) if wanted else {}
    for row in done:
        chance = 1.0 if row.draw < 0 else probability(row.rate, statistics.get(row.stratum, 0.0))
        if row.draw < chance:
            yield {
                "job_id": row.job_id,
                "batch_id": row.batch_id,
                "stratum": row.stratum,
                "category": row.category,
                "model_class": row.model_class,
                "model": row.served_model or "",
                "probability": chance,
                "state": "chosen",
                "created_at": now,
            }


def chosen(db: Database, limit: int) -> list[Audited]:
    """Jobs that nobody was asked about yet, the oldest first."""
    with db.read() as c:
        query: Any = (
            select(audits, jobs.c.tier, jobs.c.app, jobs.c.verdict.label("kept"), bodies.c.body, outputs.c.output)
            .join(jobs, jobs.c.id == audits.c.job_id)
            .join(bodies, bodies.c.job_id == jobs.c.id)
            .join(outputs, outputs.c.job_id == jobs.c.id)
            .where(audits.c.state == "chosen")
            .order_by(audits.c.id)
            .limit(limit)
        )
        return [_audited(row) for row in c.execute(query)]


def _audited(row: Row[Any]) -> Audited:
    kept = orjson.loads(row.kept) if row.kept else {}
    return Audited(
        audit_id=row.id,
        category=row.category,
        model_class=row.model_class,
        model=row.model,
        tier=Tier(row.tier),
        body=orjson.loads(row.body),
        output=orjson.loads(row.output),
        consent=kept.get("consent"),
        touches=tuple(kept.get("touches", ())),
        app=row.app,
    )


@retried
def to_person(db: Database, ids: Iterable[int]) -> None:
    """Only a person may be asked about these, or the auditor gave no answer."""
    with db.write() as c:
        waits = audits.c.state.in_(("chosen", "asked"))
        c.execute(update(audits).where(audits.c.id.in_(list(ids)), waits).values(state="person"))


@retried
def asked(db: Database, batch_id: str) -> int:
    """The jobs of an opened audit batch ask about the audits whose ids they carry; the count."""
    with db.write() as c:
        rows = c.execute(select(jobs.c.id, jobs.c.line_id).where(jobs.c.batch_id == batch_id)).all()
        return sum(
            c.execute(
                update(audits)
                .where(audits.c.id == int(row.line_id), audits.c.state == "chosen")
                .values(state="asked", asked_job_id=row.id)
            ).rowcount
            for row in rows
        )


def answered(db: Database) -> list[Row[Any]]:
    """Audits whose asking job has ended: id, its state, served model and answer, and the audited job's output."""
    answers = outputs.alias("answers")
    with db.read() as c:
        query: Any = (
            select(
                audits.c.id,
                jobs.c.state,
                jobs.c.served_model,
                answers.c.output.label("answer"),
                outputs.c.output,
            )
            .join(jobs, jobs.c.id == audits.c.asked_job_id)
            .outerjoin(answers, answers.c.job_id == jobs.c.id)
            .join(outputs, outputs.c.job_id == audits.c.job_id)
            .where(audits.c.state == "asked", jobs.c.state.in_(TERMINAL))
            .order_by(audits.c.id)
            .limit(CHUNK)
        )
        return list(c.execute(query).all())


@retried
def judge(db: Database, audit_id: int, opinion: Opinion, reason: str, auditor: str, *, again: bool = False) -> bool:
    """Record an opinion, and move the stratum's test on; False where there is one already and it is not given again.

    A test that reaches its alarm level leaves an event. An opinion given again by a person counts in place of the
    first, as if the first had never been.
    """
    with db.write() as c:
        row = c.execute(select(audits).where(audits.c.id == audit_id).with_for_update()).first()
        if row is None:
            raise NotFound(f"there is no audit {audit_id}; `offload audit list` shows them")
        if row.state == "judged" and not again:
            return False
        now = db.now(c)
        first = row.judged_at or now  # an opinion given again counts in the hour of the first
        values = {"state": "judged", "verdict": opinion.value, "reason": reason, "auditor": auditor, "judged_at": first}
        c.execute(update(audits).where(audits.c.id == audit_id).values(values))
        _move_test(c, row, opinion, now)
        audit_judged(c, first)
    return True


def _move_test(c: Connection, audit: Row[Any], opinion: Opinion, now: float) -> None:
    row = c.execute(select(strata).where(strata.c.id == audit.stratum).with_for_update()).one()
    before = CusumState(row.statistic, row.alarms, row.armed, row.audits)
    if audit.state == "judged":
        after = replay(_verdicts(c, audit.stratum))
    elif opinion is Opinion.UNSURE:
        return
    else:
        after = advance(before, opinion is Opinion.AGREE)
    c.execute(
        update(strata)
        .where(strata.c.id == audit.stratum)
        .values(statistic=after.statistic, alarms=after.alarms, armed=after.armed, audits=after.n)
    )
    if after.alarms > before.alarms:
        detail = {"category": row.category, "class": row.model_class, "model": audit.model, "audits": after.n}
        tell(c, now, News(Kind.AUDIT_ALARM, row.id, detail))


def _verdicts(c: Connection, stratum: str) -> list[bool]:
    """A stratum's verdicts in the order in which they were first asked for."""
    query = (
        select(audits.c.verdict)
        .where(audits.c.stratum == stratum, audits.c.verdict.in_(VERDICTS))
        .order_by(audits.c.id)
    )
    return [verdict == Opinion.AGREE for verdict in c.execute(query).scalars()]


# --- reading ---------------------------------------------------------------------------------------------


def listed(db: Database, *, state: str | None = None, batch_id: str | None = None, limit: int = 50) -> list[Row[Any]]:
    """Audits, the newest first, each with its job's line id."""
    with db.read() as c:
        query: Any = (
            select(audits, jobs.c.line_id)
            .join(jobs, jobs.c.id == audits.c.job_id)
            .order_by(audits.c.id.desc())
            .limit(limit)
        )
        if state is not None:
            query = query.where(audits.c.state == state)
        if batch_id is not None:
            query = query.where(audits.c.batch_id == batch_id)
        return list(c.execute(query).all())


def one(db: Database, audit_id: int) -> Row[Any]:
    """An audit with what was asked and answered; raises NotFound."""
    with db.read() as c:
        query: Any = (
            select(audits, jobs.c.line_id, jobs.c.tier, bodies.c.body, outputs.c.output)
            .join(jobs, jobs.c.id == audits.c.job_id)
            .join(bodies, bodies.c.job_id == jobs.c.id)
            .join(outputs, outputs.c.job_id == jobs.c.id)
            .where(audits.c.id == audit_id)
        )
        row = c.execute(query).first()
    if row is None:
        raise NotFound(f"there is no audit {audit_id}; `offload audit list` shows them")
    return row


def counted(db: Database, batch_id: str | None = None) -> dict[str, int]:
    """How many audits there are by state, and by verdict where they are judged; of a batch or of all."""
    what = func.coalesce(audits.c.verdict, audits.c.state)
    query: Any = select(what, func.count()).group_by(what)
    if batch_id is not None:
        query = query.where(audits.c.batch_id == batch_id)
    with db.read() as c:
        return dict(c.execute(query).all())


def opinions(db: Database) -> list[Row[Any]]:
    """Every audit's category, model, verdict and probability; of those that are alike their number, `n`."""
    alike = audits.c.category, audits.c.model, audits.c.verdict, audits.c.probability
    with db.read() as c:
        return list(c.execute(select(*alike, func.count().label("n")).group_by(*alike)).all())


def all_strata(db: Database) -> list[Row[Any]]:
    """Every stratum that was audited, those nearest to an alarm first."""
    with db.read() as c:
        query: Any = select(strata).where(strata.c.audits > 0).order_by(strata.c.statistic.desc(), strata.c.id)
        return list(c.execute(query).all())


def alarms(db: Database, limit: int = 20) -> list[Row[Any]]:
    """The newest alarms first."""
    with db.read() as c:
        query: Any = select(events).where(events.c.kind == Kind.AUDIT_ALARM).order_by(events.c.id.desc()).limit(limit)
        return list(c.execute(query).all())
