"""Second opinions on finished jobs: chosen, asked for in batches of the pool's own, taken in.

It looks at jobs only after they have ended, and asks at the lowest priority: an audit delays no job and fails none.
Every step is one transaction that the next run goes on from, so a crash between two of them asks nobody twice.
"""

from __future__ import annotations

from collections import Counter

import orjson

from tasks.auditing import Audited, opinion, question
from tasks.ledger import audits, submit
from tasks.ledger.database import Database
from tasks.ledger.ticks import tick
from tasks.registry import Registry
from tasks.schemas import NewJob
from tasks.states import ANSWERED

#: audits that one batch asks for
BATCH = 100
#: below every job of a producer
PRIORITY = -100


def run_once(db: Database, registry: Registry) -> Counter[str]:
    """Take in answers, choose, and ask; the counts say how many of each."""
    counts = Counter(judged=_take_in(db), chosen=audits.choose(db))
    while waiting := audits.chosen(db, BATCH):
        counts["asked"] += _ask(db, registry, waiting)
        if len(waiting) < BATCH:
            break
    tick(db, "audit", dict(counts))
    return counts


def _ask(db: Database, registry: Registry, waiting: list[Audited]) -> int:
    """Ask auditors about these, and leave to a person what nobody else may see; how many were asked about."""
    questions: list[NewJob] = []
    for job in waiting:
        asks = question(job, len(questions) + 1, registry)
        if asks is None:
            audits.to_person(db, [job.audit_id])
        else:
            questions.append(asks)
    if not questions:
        return 0
    # the first id names the batch: a run that died after opening it finds it again and asks nobody twice
    batch_id, new = submit.begin(
        db, name="audit", priority=PRIORITY, key=f"audit of {questions[0].line_id}", kind="audit"
    )
    if new:
        submit.open_batch(db, batch_id, submit.add(db, batch_id, questions, PRIORITY))
    return audits.asked(db, batch_id)


def _take_in(db: Database) -> int:
    """Record what auditors have answered; where they could not answer, a person is asked."""
    rows = audits.answered(db)
    for row in rows:
        if row.state in ANSWERED and row.answer is not None:
            said, reason = opinion(orjson.loads(row.answer), orjson.loads(row.output))
            audits.judge(db, row.id, said, reason, row.served_model or "")
        else:
            audits.to_person(db, [row.id])
    return len(rows)
