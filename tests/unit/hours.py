"""I6: an hour's rollups are the sum of its calls, whatever came when and whoever summed it how often, on any database.

The quick suite leads few histories, the acceptance suite many.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import insert

from scheduler import rollups as service
from tasks.ledger import rollups
from tasks.rollups import HOUR_S, KEY, hour_of
from tasks.routing import Decision
from tasks.sketches import ERROR, LEAST
from tasks.tables import CallRow, RolledHour, Rollup
from tests.unit.databases import ClockedDatabase
from tests.unit.ledgers import Ledger, call_row, outcome

calls = CallRow.__table__  # type: ignore[attr-defined]

#: histories by database, and the part of them that is led in the quick suite
HISTORIES, QUICK = {"sqlite": 40, "postgres": 20}, 1 / 4
NAMES = ("job_id", "batch_id", "fence", *(n for n in KEY if n != "model"), "model_asked", "started_at", "duration_ms")
#: the figures of which the row has to be the sum, by other words than the code's own
FIGURES: dict[str, Callable[[Any], float]] = {
    "calls": lambda r: r.sent,
    "stale": lambda r: r.sent and r.stale,
    "errors": lambda r: r.sent and not r.stale and r.error_code is not None,
    "jobs_done": lambda r: r.ended == "done",
    "jobs_failed": lambda r: r.ended == "failed",
    "jobs_escalated": lambda r: r.ended == "escalated",
    "jobs_refused": lambda r: r.ended == "refused",
    "tokens_in": lambda r: r.tokens_in * r.sent,
    "tokens_out": lambda r: r.tokens_out * r.sent,
    "tokens_thinking": lambda r: (r.tokens_thinking or 0) * r.sent,
    "leaks": lambda r: r.sent and not r.stale and r.leaked,
    "json_failures": lambda r: r.sent and not r.stale and r.error_code in ("bad_json", "schema_mismatch"),
    "cost_usd": lambda r: r.cost_usd * r.sent,
    "cost_avoided_usd": lambda r: (r.avoided_usd - r.cost_usd) * r.sent,
    "load_ms": lambda r: r.load_ms if r.sent and not r.stale else 0.0,
}


def key_of(row: Any) -> tuple[Any, ...]:
    """A call's key."""
    return tuple(row.model_served or row.model_asked if n == "model" else getattr(row, n) for n in KEY)


def check(ledger: Ledger) -> None:
    """Every hour that is not closed is the sum of its calls: one row a key, none of a key that has no calls."""
    closed = {row.hour for row in ledger.all(RolledHour) if row.closed_at is not None}
    there: defaultdict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for row in ledger.all(CallRow):
        if row.hour not in closed:
            there[row.hour, *key_of(row)].append(row)
    kept = {(row.hour, *(getattr(row, n) for n in KEY)): row for row in ledger.all(Rollup) if row.hour not in closed}
    assert {k for k, row in kept.items() if not row.audits or k in there} == set(there)
    for key, rows in there.items():
        for name, figure in FIGURES.items():
            assert getattr(kept[key], name) == pytest.approx(sum(map(figure, rows))), (key, name)
        _check_quantiles(kept[key], [row for row in rows if row.sent and not row.stale])


def _check_quantiles(kept: Any, rows: list[Any]) -> None:
    for name, column in (("wait", "queue_ms"), ("duration", "duration_ms")):
        values = sorted(getattr(row, column) for row in rows)
        assert sum(getattr(kept, name).values()) == len(values)
        for p, q in (("p50", 0.5), ("p99", 0.99)):
            exact = values[max(0, math.ceil(q * len(values)) - 1)] if values else None
            assert getattr(kept, f"{name}_{p}") == (
                pytest.approx(exact, rel=ERROR * 1.01, abs=LEAST) if values else None
            )


#: hours, from the clock's own, in which calls ended: most of them now, some late, some by a clock that is ahead
shifts = st.sampled_from([0, 0, 0, -1, -2, -30, 1, 3])
call = st.fixed_dictionaries(
    {
        "category": st.sampled_from(["code", "summarize"]),
        "model_served": st.sampled_from([None, "m1", "m2"]),
        "node": st.sampled_from(["a", "b"]),
        "app": st.sampled_from(["", "shop"]),
        "decision": st.sampled_from([d.value for d in Decision]),
        "stale": st.booleans(),
        "sent": st.sampled_from([True, True, True, False]),
        "ended": st.sampled_from([None, "done", "failed", "escalated", "refused"]),
        "error_code": st.sampled_from([None, None, "bad_json", "schema_mismatch", "reset"]),
        "leaked": st.booleans(),
        "tokens_in": st.integers(0, 10**6),
        "tokens_out": st.integers(0, 10**6),
        "tokens_thinking": st.one_of(st.none(), st.integers(0, 1000)),
        "cost_usd": st.floats(0, 5),
        "avoided_usd": st.floats(0, 5),
        "load_ms": st.floats(0, 1e5),
        "queue_ms": st.floats(0, 1e8),
        "first_token_ms": st.floats(0, 1e5),
        "duration_ms": st.floats(0, 3e6),
    }
)
FIXED = {"job_id": 0, "batch_id": "", "fence": 0, "model_class": "small", "provider": "gpu", "model_asked": "m0"}


class Hours(RuleBasedStateMachine):
    """Calls come in any order while beats sum them, two at once, or none for hours."""

    def __init__(self, db: ClockedDatabase) -> None:
        super().__init__()
        self.ledger = Ledger(db)
        self.db = db
        self.fresh = True  # nothing was recorded since the last run
        self.closed: dict[int, list[Any]] = {}

    @rule(some=st.lists(st.tuples(call, shifts), min_size=1, max_size=4))
    def calls_come(self, some: list[tuple[dict[str, Any], int]]) -> None:
        rows = []
        for figures, shift in some:
            end = self.db.time + shift * HOUR_S
            started = end - figures["duration_ms"] / 1000
            rows.append(FIXED | figures | {"started_at": started, "hour": hour_of(end)})
        with self.db.write() as c:
            c.execute(insert(calls), rows)
        self.fresh = False

    @rule(n=st.integers(1, 2), again=st.booleans())
    def jobs_end(self, n: int, again: bool) -> None:
        """By way of the ledger itself; some results come twice."""
        _, _, held = self.ledger.running(n)
        for job in held:
            ended = outcome(job, call=call_row(job) | {"started_at": self.db.time, "duration_ms": 7.0})
            self.ledger.record(ended)
            if again:
                self.ledger.record(ended)
        self.fresh = False

    @rule(hours=st.sampled_from([0.01, 0.5, 1.0, 3.0, 25.0, -1.0]))
    def time_passes(self, hours: float) -> None:
        """Or a clock is set back."""
        self.db.time += hours * HOUR_S

    @rule(times=st.integers(1, 2))
    def beat_runs(self, times: int) -> None:
        for _ in range(times):
            service.sum_due(self.db)
        self.fresh = True

    @rule()
    def two_beats_run(self) -> None:
        """At the same moment."""
        errors: list[Exception] = []
        threads = [threading.Thread(target=_caught, args=(errors, service.sum_due, self.db)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        self.fresh = True

    @rule(figures=call, shift=shifts)
    def a_beat_is_stopped(self, figures: dict[str, Any], shift: int) -> None:
        """It has read an hour, calls come and another beat sums them, and then it goes on with what it read."""
        hour = hour_of(self.db.time + shift * HOUR_S)
        read = rollups.sums(self.db, KEY, rollups.within(hour))
        self.calls_come([(figures, shift)])
        service.sum_due(self.db)
        rollups._write(self.db, hour, *read)
        self.fresh = True

    @rule(days=st.sampled_from([0.5, 2.0]))
    def calls_are_pruned(self, days: float) -> None:
        rollups.prune(self.db, days)
        closed = {row.hour for row in self.ledger.all(RolledHour) if row.closed_at is not None}
        for hour in closed - set(self.closed):
            self.closed[hour] = rollups.of_hour(self.db, hour)

    @invariant()
    def the_sums_hold(self) -> None:
        if self.fresh:
            check(self.ledger)
        for hour, rows in self.closed.items():
            assert rollups.of_hour(self.db, hour) == rows, "a closed hour stays as it is"

    def teardown(self) -> None:
        service.sum_due(self.db)
        check(self.ledger)


def _caught(errors: list[Exception], work: Callable[[ClockedDatabase], object], db: ClockedDatabase) -> None:
    try:
        work(db)
    except Exception as error:
        errors.append(error)


def live(db: ClockedDatabase, part: float = 1.0) -> None:
    """Histories, others each time. part: of the number that a database has."""
    run_state_machine_as_test(
        partial(Hours, db),  # type: ignore[arg-type]  # anything that makes one will do
        settings=settings(
            max_examples=round(part * HISTORIES["postgres" if db.is_postgres else "sqlite"]),
            stateful_step_count=25,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
