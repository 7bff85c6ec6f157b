"""I6: an hour's rollups are the sum of its calls, one row a key, whatever came when and whoever summed it how often."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event, insert

from scheduler import rollups as service
from tasks.auditing import Opinion
from tasks.ledger import audits, rollups, submit
from tasks.rollups import HOUR_S, SUMS, hour_of
from tasks.routing import Route
from tasks.states import JobState
from tasks.tables import Audit, CallRow, RolledHour, Rollup
from tests.unit.databases import ClockedDatabase
from tests.unit.hours import FIGURES, FIXED, QUICK, live
from tests.unit.ledgers import Ledger, new_jobs, outcome

calls = CallRow.__table__  # type: ignore[attr-defined]
audit_rows = Audit.__table__  # type: ignore[attr-defined]


def test_every_figure_is_checked() -> None:
    """A column that somebody adds is in the oracle (tests/unit/hours.py), or is an audit's."""
    assert set(FIGURES) | {"audits", "audits_agreed"} == set(SUMS)


@pytest.mark.slow
def test_i6_in_a_file(sqlite_db: ClockedDatabase) -> None:
    """After every run each hour is the sum of its calls, and after a prune it stays what it was: a few histories."""
    live(sqlite_db, QUICK)


@pytest.mark.slow
def test_i6_in_postgresql(postgres_db: ClockedDatabase) -> None:
    """The same."""
    live(postgres_db, QUICK)


# --- one at a time ---------------------------------------------------------------------------------------


def put(ledger: Ledger, n: int = 1, shift_s: float = 0.0, **figures: Any) -> int:
    """Calls that ended just now, or so many seconds off; their hour."""
    end = ledger.db.time + shift_s
    with ledger.db.write() as c:
        c.execute(insert(calls), [FIXED | KEYS | {"started_at": end, "hour": hour_of(end)} | figures] * n)
    return hour_of(end)


KEYS = {"category": "code", "node": "a"}


def test_a_run_without_news_writes_nothing(ledger: Ledger) -> None:
    """The second of two runs finds every hour as it should be."""
    hour = put(ledger, 3)
    assert service.sum_due(ledger.db) == Counter(hours=1)
    assert service.sum_due(ledger.db) == Counter()
    assert [row.calls for row in rollups.of_hour(ledger.db, hour)] == [3]


def test_missed_hours_are_filled_in(ledger: Ledger) -> None:
    """A beat that was away for hours sums each of them with its first run."""
    there = []
    for _ in range(4):
        there.append(put(ledger))
        ledger.wait(HOUR_S)
    assert service.sum_due(ledger.db) == Counter(hours=4)
    assert [row.hour for row in ledger.all(RolledHour)] == there


@pytest.mark.parametrize("later_s", [60, HOUR_S])
def test_an_old_commit_is_found_by_a_later_run(ledger: Ledger, later_s: float) -> None:
    """An id is given out before its commit: a run that comes between looks again, until that cannot be any more."""
    put(ledger, id=1_000_000)
    service.sum_due(ledger.db)
    ledger.wait(later_s)
    hour = put(ledger, id=999_999, shift_s=-later_s)
    assert service.sum_due(ledger.db) == Counter(hours=1)
    assert [row.calls for row in rollups.of_hour(ledger.db, hour)] == [2]
    ledger.wait(HOUR_S)
    service.sum_due(ledger.db)
    assert rollups.due(ledger.db)[0] == [], "what is settled is not looked at again"


def test_an_audit_counts_in_the_hour_it_was_judged(ledger: Ledger) -> None:
    """By its job's key; one that is judged again counts there with what was said last."""
    _, _, (job,) = ledger.running(1)
    ledger.record(outcome(job, provider="gpu", node="node", served_model="m"))
    made = {"job_id": job.id, "batch_id": job.batch_id, "stratum": "s", "category": job.category, "model": "m"}
    with ledger.db.write() as c:
        more = {"model_class": "small", "probability": 1.0, "state": "asked", "created_at": 1.0}
        audit_id = int(c.execute(insert(audit_rows).values(made | more).returning(audit_rows.c.id)).scalar_one())
        c.exec_driver_sql(
            "INSERT INTO strata (id, category, model_class, template, seen, audits, statistic, alarms, armed)"
            " VALUES ('s', 'x', 'small', 't', 0, 0, 0, 0, true)"
        )
    ledger.wait(2 * HOUR_S)
    hour = hour_of(ledger.db.time)
    service.sum_due(ledger.db)
    audits.judge(ledger.db, audit_id, Opinion.AGREE, "", "auditor")
    assert service.sum_due(ledger.db) == Counter(hours=1)
    (row,) = rollups.of_hour(ledger.db, hour)
    assert (row.calls, row.audits, row.audits_agreed, row.provider) == (0, 1, 1, "gpu")
    ledger.wait(5 * HOUR_S)
    audits.judge(ledger.db, audit_id, Opinion.DISAGREE, "", "person", again=True)
    service.sum_due(ledger.db)
    (row,) = rollups.of_hour(ledger.db, hour)
    assert (row.audits, row.audits_agreed) == (1, 0)


def test_a_pruned_hour_is_closed(ledger: Ledger) -> None:
    """Its calls go, its sums stay; a call that comes for it later changes nothing and goes with the next prune."""
    hour = put(ledger, 3)
    ledger.wait(40 * 24 * HOUR_S)
    put(ledger)
    assert rollups.prune(ledger.db, 30) == {"hours": 1, "calls": 3}
    put(ledger, shift_s=-40 * 24 * HOUR_S)
    service.sum_due(ledger.db)
    assert [row.calls for row in rollups.of_hour(ledger.db, hour)] == [3]
    put(ledger)
    assert rollups.prune(ledger.db, 30) == {"hours": 0, "calls": 1}
    assert rollups.prune(ledger.db, 30) == {"hours": 0, "calls": 0}
    assert len(ledger.all(CallRow)) == 2


def test_refused_jobs_are_counted_without_a_call(ledger: Ledger) -> None:
    """A batch's refusals are there with its promise and not before, with their reason and nothing sent."""
    route = Route("small", state=JobState.REFUSED, verdict={"reasons": [{"id": "x", "reason": "too secret"}]})
    batch_id = ledger.submit(2, job={"route": route, "app": "shop"}, opened=False)
    assert ledger.calls() == []
    submit.open_batch(ledger.db, batch_id, 2)
    assert {(r.ended, r.decision, r.reason, r.sent, r.app) for r in ledger.calls()} == {
        ("refused", "refuse", "too secret", False, "shop")
    }
    service.sum_due(ledger.db)
    (row,) = ledger.all(Rollup)
    assert (row.calls, row.jobs_refused, row.decision) == (0, 2, "refuse")


def test_refusals_are_noted_some_at_a_time_in_one_commit(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """No statement writes more of them than its bound, each is there once, and before the commit that opens is none."""
    monkeypatch.setattr(submit, "COMMIT_JOBS", 4)
    batch_id, _ = submit.begin(ledger.db, name=None)
    route = Route("small", state=JobState.REFUSED)
    lines = [replace(job, route=route) if job.line % 5 else job for job in new_jobs(12)]
    submit.add(ledger.db, batch_id, lines)
    written: list[Any] = []

    def note(_c: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO calls"):
            written.append(cursor.rowcount)

    event.listen(ledger.db.engine, "after_cursor_execute", note)
    event.listen(ledger.db.engine, "commit", lambda _: written.append("commit"))
    submit.open_batch(ledger.db, batch_id, 12)
    assert written == [4, 4, 2, "commit"]
    assert sorted(row.job_id for row in ledger.calls()) == [j.id for j in ledger.jobs(batch_id) if j.line % 5]


def test_a_job_that_could_not_be_sent_is_counted(ledger: Ledger) -> None:
    """It failed before its request: no call, one failed job, with what telemetry knows of it."""
    _, _, (job,) = ledger.running(1)
    ledger.record(outcome(job, JobState.FAILED, call=None, error_code="prompt_too_long"))
    (row,) = ledger.calls()
    assert (row.ended, row.sent, row.error_code, row.fence) == ("failed", False, "prompt_too_long", job.fence)
