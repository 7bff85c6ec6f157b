"""What the second opinions say: agreement by category and model, never without its bounds; and each test's state."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import orjson

from tasks.auditing import Opinion
from tasks.ledger import audits
from tasks.ledger.database import Database
from tasks.sampling import ALARM, estimate
from tasks.schemas import prompt_text


@dataclass(frozen=True)
class Agreement:
    """One category on one model. n: audits that agreed or disagreed.

    agreement: weighted by the probabilities; low, high: its 95 % Wilson bounds at effective_n; None while n is 0.
    """

    category: str
    model: str
    n: int
    unsure: int
    waiting: int
    agreement: float | None
    low: float | None
    high: float | None
    effective_n: float


@dataclass(frozen=True)
class Test:
    """The sequential test of one stratum, which alarms at `level`. watched: its jobs are audited more often now."""

    stratum: str
    category: str
    model_class: str
    audits: int
    statistic: float
    level: float
    watched: bool
    alarms: int


@dataclass(frozen=True)
class Report:
    """Everything the audit knows."""

    agreements: list[Agreement]
    tests: list[Test]
    alarms: list[dict[str, Any]]


def report(db: Database) -> Report:
    """The report over every audit there is."""
    groups: defaultdict[tuple[str, str], list[Any]] = defaultdict(list)
    for row in audits.opinions(db):
        groups[row.category, row.model].append(row)
    tests = [_test(row) for row in audits.all_strata(db)]
    alarms = [{"at": row.at, "stratum": row.subject, **row.detail} for row in audits.alarms(db)]
    return Report([_agreement(*key, rows) for key, rows in sorted(groups.items())], tests, alarms)


def _agreement(category: str, model: str, rows: list[Any]) -> Agreement:
    judged = {(r.verdict == Opinion.AGREE, r.probability): r.n for r in rows if r.verdict in audits.VERDICTS}
    found = estimate(judged)
    return Agreement(
        category=category,
        model=model,
        n=found.n if found else 0,
        unsure=sum(r.n for r in rows if r.verdict == Opinion.UNSURE),
        waiting=sum(r.n for r in rows if r.verdict is None),
        agreement=found.agreement if found else None,
        low=found.low if found else None,
        high=found.high if found else None,
        effective_n=found.effective_n if found else 0.0,
    )


def _test(row: Any) -> Test:
    return Test(
        stratum=row.id,
        category=row.category,
        model_class=row.model_class,
        audits=row.audits,
        statistic=row.statistic,
        level=ALARM,
        watched=row.statistic > ALARM / 2,
        alarms=row.alarms,
    )


@dataclass(frozen=True)
class Shown:
    """One audit as a person judges it."""

    id: int
    batch_id: str
    line_id: str
    category: str
    model: str
    state: str
    auditor: str | None
    verdict: str | None
    reason: str | None
    probability: float
    system: str
    request: str
    output: Any


def shown(db: Database, audit_id: int) -> Shown:
    """What was asked and answered; raises NotFound."""
    row = audits.one(db, audit_id)
    body = orjson.loads(row.body)
    return Shown(
        id=row.id,
        batch_id=row.batch_id,
        line_id=row.line_id,
        category=row.category,
        model=row.model,
        state=row.state,
        auditor=row.auditor,
        verdict=row.verdict,
        reason=row.reason,
        probability=row.probability,
        system=body.get("system") or "",
        request=prompt_text(body),
        output=orjson.loads(row.output),
    )
