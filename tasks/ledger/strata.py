"""Which jobs may be audited, fixed at submit: the draw of each, and the first of every new stratum."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, func, insert, select, update

from tasks import sampling
from tasks.ledger.database import insert_new
from tasks.registry import CLOUD
from tasks.sampling import FIRST, MORE_OFTEN
from tasks.schemas import NewJob
from tasks.states import JobState
from tasks.tables import PoolFacts, Sample, Stratum

#: the draw of the first of a stratum: below every rate
ALWAYS = -1.0
#: strata a pool keeps apart; templates beyond them share one for each category and class
MOST_STRATA = 1_000
#: the template of those
OTHERS = "others"

pool = PoolFacts.__table__  # type: ignore[attr-defined]
samples = Sample.__table__  # type: ignore[attr-defined]
strata = Stratum.__table__  # type: ignore[attr-defined]


def add_samples(c: Connection, batch_id: str, added: Sequence[tuple[int, NewJob]]) -> None:
    """Note those of the jobs just added, in submit order, that may be audited when they are done."""
    wanted = [(i, job) for i, job in added if job.audit > 0 and job.route.state is JobState.QUEUED and _is_local(job)]
    if not wanted:
        return
    salt: bytes = c.execute(select(pool.c.salt)).scalar_one()
    seen = _strata(c, {_key(job) for _, job in wanted})
    before = dict(seen)
    rows = []
    for job_id, job in wanted:
        stratum = _stratum_id(_key(job), seen)
        first = seen[stratum] < FIRST
        seen[stratum] += first
        draw = ALWAYS if first else sampling.draw(salt, batch_id, job.line_id)
        if draw < MORE_OFTEN * job.audit:
            rows.append({"job_id": job_id, "stratum": stratum, "draw": draw, "rate": job.audit})
    for stratum, n in seen.items():
        if n != before[stratum]:
            c.execute(update(strata).where(strata.c.id == stratum).values(seen=n))
    if rows:
        c.execute(insert(samples), rows)


def add_drawn(c: Connection, job_id: int, job: NewJob, draw: float) -> None:
    """Note a job that is done already and was drawn by its caller."""
    stratum = _stratum_id(_key(job), _strata(c, {_key(job)}))
    c.execute(insert(samples), [{"job_id": job_id, "stratum": stratum, "draw": draw, "rate": job.audit}])


def drop_samples(c: Connection, job_ids: Sequence[int]) -> None:
    """Forget jobs whose load was given up; the first of a stratum are to be found anew."""
    mine = samples.c.job_id.in_(job_ids)
    firsts = select(samples.c.stratum, func.count()).where(mine, samples.c.draw == ALWAYS).group_by(samples.c.stratum)
    for stratum, n in c.execute(firsts.order_by(samples.c.stratum)).all():
        c.execute(update(strata).where(strata.c.id == stratum).values(seen=strata.c.seen - n))
    c.execute(delete(samples).where(mine))


_Key = tuple[str, str, str]


def _is_local(job: NewJob) -> bool:
    """Whether a local model is meant to do it: what the cloud does is not audited."""
    return job.route.escalated_from is None and job.route.model_class != CLOUD


def _key(job: NewJob) -> _Key:
    return job.category, job.model_class, job.template


def _id(key: _Key) -> str:
    return sampling.template(*key)


def _stratum_id(key: _Key, there: dict[str, int]) -> str:
    return own if (own := _id(key)) in there else _id((*key[:2], OTHERS))


def _strata(c: Connection, keys: set[_Key]) -> dict[str, int]:
    """The strata of these jobs, made where they are new: id -> how many of its first were seen."""
    others = {(*key[:2], OTHERS) for key in keys}
    seen = _seen(c, {*keys, *others})
    room = MOST_STRATA - c.execute(select(func.count()).select_from(strata)).scalar_one()
    new = [key for key in sorted(keys) if _id(key) not in seen]
    if len(new) > room:  # beyond it, templates of one category and class share a stratum
        shared = {(*key[:2], OTHERS) for key in new[max(0, room) :]}
        new = new[: max(0, room)] + [key for key in sorted(shared) if _id(key) not in seen]
    if new:
        rows = [{"id": _id(k), "category": k[0], "model_class": k[1], "template": k[2]} for k in new]
        insert_new(c, strata, rows)
    return _seen(c, {*keys, *others})


def _seen(c: Connection, keys: set[_Key]) -> dict[str, int]:
    """Those of the strata that are there."""
    ids = sorted(map(_id, keys))
    found: dict[str, int] = {}
    for start in range(0, len(ids), 500):
        query = select(strata.c.id, strata.c.seen).where(strata.c.id.in_(ids[start : start + 500]))
        found.update(c.execute(query.order_by(strata.c.id).with_for_update()).all())
    return found
