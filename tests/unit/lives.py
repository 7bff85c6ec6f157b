"""Whatever happens in whatever order, the promises of the ledger hold after every step, on both databases.

The quick suite leads few lives, the acceptance suite many.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.engine import Row

from tasks.errors import BrokerDown, UsageError
from tasks.ledger import claims, control, endings, reading, sweeping
from tasks.ledger.claims import Claimed, Identity
from tasks.ledger.record import Outcome
from tasks.ledger.submit import LOADING_SILENT_S
from tasks.privacy import Tier
from tasks.routing import Route
from tasks.states import LIVE, TERMINAL, JobState
from tasks.tables import Batch
from tests.unit.databases import ClockedDatabase
from tests.unit.ledgers import REGISTRY, TIMES, Ledger, Seen, outcome

CLASSES = ("cloud", "small")
NAMES = ("a/gpu", "b/gpu", "c/cloud")
MOST_ATTEMPTS = 3
#: lives by database, and the part of them that is led in the quick suite
LIVES, QUICK = {"sqlite": 25, "postgres": 12}, 1 / 3
ENDINGS = ("done", "done", "failed", "retry", "given back", "on to the cloud")
#: which of what there is then; what is drawn depends on nothing that a database may order as it likes
which = st.integers(0, 10_000)
names = st.sampled_from(NAMES)
Results = list[tuple[int, str]]
results = st.lists(st.tuples(which, st.sampled_from(ENDINGS)), min_size=1, max_size=5)
T = TypeVar("T")


def pick(there: Sequence[T], n: int) -> T:
    """The n-th, counted around."""
    return there[n % len(there)]


class Lives(RuleBasedStateMachine):
    """Producers, three workers, beat, and a Redis that keeps, doubles and loses messages.

    What the producers were told is kept here, outside, and compared with the ledger after every step.
    """

    def __init__(self, db: ClockedDatabase) -> None:
        super().__init__()
        ids = count(1)  # ids order rows that are alike, and Hypothesis wants the same order each time
        self.ids = patch("secrets.token_hex", lambda _: f"{next(ids):08}")
        self.ids.start()
        self.ledger = Ledger(db)
        self.workers: dict[str, Identity] = {}
        self.messages: list[str] = []  #: every slice ever sent; any of them may arrive, any number of times, or never
        self.fences: dict[int, int] = {}  #: the newest claim of each job
        self.hand: list[Claimed] = []  #: what workers believe to hold, rightly or not
        self.holders: dict[tuple[int, int], str] = {}  #: (job, fence) -> run id
        self.promised: dict[str, set[int]] = {}  #: batch -> its lines, from the moment its submit was answered
        self.first: dict[str, str] = {}  #: batch -> the one in which its lines were first submitted
        self.needs: dict[str, str] = {}
        self.ended: dict[int, Row[Any]] = {}  #: jobs as they were when they were first seen to have ended
        self.late = 0  #: results that came too late
        self.seen = Seen({}, {})

    @initialize()
    def a_pool_at_work(self) -> None:
        for name in NAMES:
            self.restart(name)
        self.submit(6, 0, 86_400.0, Tier.CLOUD_OK, False)
        self.submit(4, 0, 86_400.0, Tier.LAN_OK, False)
        self.promises_hold()
        self.work(NAMES[0], True)

    # --- producers ---------------------------------------------------------------------------------------

    @rule(
        n=st.integers(1, 6),
        priority=st.integers(0, 1),
        deadline_s=st.sampled_from([40.0, 86_400.0, 86_400.0]),
        tier=st.sampled_from([Tier.LAN_OK, Tier.CLOUD_OK]),
        dies=st.sampled_from([False, False, False, True]),
    )
    def submit(self, n: int, priority: int, deadline_s: float, tier: Tier, dies: bool) -> None:
        job = {"route": Route("small", tier)}
        batch_id = self.ledger.submit(n, priority=priority, deadline_s=deadline_s, job=job, opened=not dies)
        if not dies:
            self._promise(batch_id, set(range(1, n + 1)), batch_id)

    def _promise(self, batch_id: str, lines: set[int], first: str) -> None:
        self.promised[batch_id] = lines
        self.first[batch_id] = first

    @rule(n=st.integers(1, 4), batch=which)
    def submit_what_depends(self, n: int, batch: int) -> None:
        needed = self._batch(batch)
        if needed.cancelled_at is not None:
            with pytest.raises(UsageError):
                self.ledger.submit(n, needs=[needed.id])
            return
        batch_id = self.ledger.submit(n, needs=[needed.id])
        self.needs[batch_id] = needed.id
        self._promise(batch_id, set(range(1, n + 1)), batch_id)

    def _batch(self, n: int, state: Collection[str] = ()) -> Row[Any]:
        """One of those with jobs that have ended like this; any, where there is none."""
        there = [b for b in self.promised if any(j.batch_id == b and j.state in state for j in self.ended.values())]
        return self.seen.batches[pick(there or list(self.promised), n)]

    @rule(batch=which, state=st.sampled_from([JobState.CANCELLED, JobState.EXPIRED]))
    def end(self, batch: int, state: JobState) -> None:
        row = self._batch(batch, (JobState.DONE, JobState.FAILED))
        if row.open < row.total or sum(b.state == "open" for b in self.seen.batches.values()) > 3:
            end = endings.cancel if state is JobState.CANCELLED else partial(endings.end_all, state=state)
            assert end(self.ledger.db, row.id) == row.open

    @rule(batch=which, act=st.sampled_from([control.pause, control.resume]))
    def pause_or_resume(self, batch: int, act: Any) -> None:
        row = self._batch(batch)
        if row.state == "open" and row.cancelled_at is None:
            act(self.ledger.db, row.id)
            assert (self.ledger.batch(row.id).paused_at is None) == (act is control.resume)
        else:
            with pytest.raises(UsageError):
                act(self.ledger.db, row.id)

    @rule(batch=which, states=st.sampled_from([control.RETRIED, (JobState.FAILED,), (JobState.CANCELLED,)]))
    def retry(self, batch: int, states: tuple[JobState, ...]) -> None:
        row = self._batch(batch, states)
        newest = {job.line: job for job in self._family(row.id)}
        mine = {j.line for j in self.seen.jobs.values() if j.batch_id == row.id and j.state in control.RETRIED}
        lines = {line for line in mine if newest[line].state in states}
        if not lines:
            with pytest.raises(UsageError):
                control.retry(self.ledger.db, row.id, states)
            return
        self._promise(control.retry(self.ledger.db, row.id, states), lines, self.first[row.id])

    def _family(self, batch_id: str) -> list[Row[Any]]:
        """The jobs of a batch's family, oldest first."""
        first = self.first[batch_id]
        return [self.seen.jobs[i] for i in sorted(self.seen.jobs) if self._first(self.seen.jobs[i]) == first]

    def _first(self, job: Row[Any]) -> str | None:
        return self.first.get(job.batch_id)

    # --- dispatch, and messages --------------------------------------------------------------------------

    @rule(down=st.booleans())
    def dispatch(self, down: bool) -> None:
        self._dispatch(down)

    def _dispatch(self, down: bool = False) -> list[str]:
        self.ledger.sender.down = down
        batches = {row.id: row for row in self.ledger.all(Batch)}
        held_back = {row.id for row in batches.values() if self._waits(row, batches)}
        before = {s.id for s in self.ledger.slices()}
        try:
            self.ledger.fill(*CLASSES)
        except BrokerDown:
            assert down
        assert not {s.batch_id for s in self.ledger.slices() if s.id not in before} & held_back
        sent = [s[0] for s in self.ledger.sender.slices]
        self.ledger.sender.slices.clear()
        self.messages += sent
        return sent

    def _waits(self, batch: Row[Any], batches: Mapping[str, Row[Any]]) -> bool:
        """Whether nothing of it may be sent: paused, or what it needs has not ended well."""
        needed = self.needs.get(batch.id)
        return batch.paused_at is not None or (needed is not None and batches[needed].state != "finished")

    def _claim(self, name: str, slices: list[str], started: bool) -> None:
        for job in self.ledger.claim(self.workers[name], started=started, slices=slices):
            assert job.fence > self.fences.get(job.id, 0), "a fence that was used before"
            self.fences[job.id] = job.fence
            self.holders[job.id, job.fence] = self.workers[name].run_id
            self.hand.append(job)

    @rule(message=which, name=names, how=st.sampled_from(["claimed", "started", "not answered", "put back"]))
    def a_message_comes(self, message: int, name: str, how: str) -> None:
        self._comes(pick(self.messages[::-1], message), name, how)

    def _comes(self, message: str, name: str, how: str) -> None:
        match how:
            case "put back":
                claims.put_back(self.ledger.db, message)
            case "not answered":  # the connection broke in the commit: the worker does not know that it holds them
                for job in self.ledger.claim(self.workers[name], slices=[message]):
                    self.fences[job.id] = job.fence
            case _:
                self._claim(name, [message, "forged"] * 2, how == "started")

    @rule(name=names, started=st.booleans())
    def work(self, name: str, started: bool) -> None:
        self._claim(name, self._dispatch(), started)

    # --- workers -----------------------------------------------------------------------------------------

    @rule(results=results)
    def record(self, results: Results) -> None:
        held = [job for job in self.hand if self._is_held(job.id, job.fence)]
        self._record([(pick(held or self.hand, n), ending) for n, ending in results])

    @rule(results=results)
    def record_whatever(self, results: Results) -> None:
        self._record([(pick(self.hand, n), ending) for n, ending in results])

    @rule(ending=st.sampled_from(ENDINGS))
    def a_stale_worker_answers(self, ending: str) -> None:
        late = [job for job in self.hand if job.fence < self.fences[job.id]][-3:]
        assert claims.renew(self.ledger.db, {job.id: job.fence for job in late}, TIMES.lease) == set()
        claims.mark_started(self.ledger.db, late)
        self._record([(job, ending) for job in late])
        assert all(self.ledger.job(job.id) == self.seen.jobs[job.id] for job in late)

    def _record(self, group: list[tuple[Claimed, str]]) -> None:
        """Record, and expect exactly those to count that are first to say so under the fence of a running job."""
        held = {job.id for job, _ in group if self._is_held(job.id, job.fence)}
        stale = len(group) - len(held)
        assert self.ledger.record(*(_outcome(job, ending) for job, ending in group)) == stale
        self.late += stale

    def _is_held(self, job_id: int, fence: int) -> bool:
        row = self.seen.jobs[job_id]
        return (row.state, row.fence) == ("running", fence)

    @rule(job=which, others=st.lists(which, max_size=3))
    def hold(self, job: int, others: list[int]) -> None:
        claims.mark_started(self.ledger.db, [pick(self.hand, n) for n in others])
        mine = pick(self.hand, job)
        held = claims.renew(self.ledger.db, {mine.id: mine.fence}, TIMES.lease)
        assert held == ({mine.id} if self._is_held(mine.id, mine.fence) else set())

    @rule(name=names)
    def disown(self, name: str) -> None:
        """The worker gives back what it does not know of."""
        me = self.workers[name]
        held = {i: fence for (i, fence), run_id in self.holders.items() if run_id == me.run_id}
        claims.disown(self.ledger.db, me, held)

    @rule(name=names)
    def restart(self, name: str) -> None:
        self.workers[name] = self.ledger.worker(name, CLASSES, 4)

    @rule(times=st.integers(1, 3))
    def a_worker_dies_of_its_job(self, times: int) -> None:
        """It runs nothing else; whoever claims the job then dies, too."""
        for _ in range(times):
            self.restart("d/gpu")
            self.promises_hold()
            slices = self._dispatch()[:1] or [s.id for s in self.ledger.slices()][:1]
            self._claim("d/gpu", slices, False)
            claims.mark_started(self.ledger.db, self.hand[-1:])
        self.restart("d/gpu")
        sweeping.take_back_expired(self.ledger.db, REGISTRY)

    # --- time --------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 1.0, 12.0, TIMES.lease + 1]))
    def sweep(self, seconds: float) -> None:
        self.ledger.wait(seconds)
        db = self.ledger.db
        sweeping.take_back_expired(db, REGISTRY)
        sweeping.drop_empty_slices(db)
        sweeping.expire_batches(db)
        control.cancel_dependents(db)
        sweeping.drop_abandoned_loads(db, LOADING_SILENT_S)
        lost = [s.id for s in sweeping.unclaimed_slices(db, TIMES.slice_lost)]
        sweeping.touch_slices(db, lost)
        self.messages += lost

    @rule(name=names)
    def leases_end(self, name: str) -> None:
        self.sweep(TIMES.lease + 1)
        self.ledger.beat(self.workers[name])
        self.promises_hold()
        self.work(name, True)

    @rule()
    def a_class_is_dead(self) -> None:
        sweeping.escalate_class(self.ledger.db, "small", ["summarize"])

    # --- what always holds -------------------------------------------------------------------------------

    @invariant()
    def promises_hold(self) -> None:
        seen = self.seen = self.ledger.check()
        rows = Counter((job.batch_id, job.line) for job in seen.jobs.values())
        mine = {(batch_id, line) for batch_id, lines in self.promised.items() for line in lines}
        assert {key for key in rows if key[0] in self.promised} == mine, "I1: every job that was promised"
        assert max(rows.values(), default=1) == 1, "I1: one row each"
        assert all(job.attempts <= MOST_ATTEMPTS for job in seen.jobs.values()), "I5"
        for job_id, ended in self.ended.items():
            assert seen.jobs[job_id] == ended, "I4: what has ended never changes"
        loaded = {job.id: job for job in seen.jobs.values() if job.batch_id in self.promised}
        self.ended |= {i: job for i, job in loaded.items() if job.state in TERMINAL}
        assert {job.state for job in seen.jobs.values() if job.id not in loaded} <= {"queued"}, "not yet promised"
        running = Counter((self._first(job), job.line) for job in loaded.values() if job.state in LIVE)
        assert max(running.values(), default=1) == 1, "a line and its retry are never both live"
        assert len(self.ledger.calls(stale=True)) == self.late

    def teardown(self) -> None:
        """However it stands, workers that do their work bring every job to its end, and every line has one result."""
        try:
            if sys.exc_info()[0] is None:  # else it failed already
                self._end_well()
        finally:
            self.ids.stop()

    def _end_well(self) -> None:
        for _ in range(200):
            if not self.ledger.all(Batch, state="open"):
                break
            self._let_it_run()
        self.promises_hold()
        assert all(j.state in TERMINAL for j in self.seen.jobs.values() if j.batch_id in self.promised), "I1: it ends"
        for first in set(self.first.values()):
            told = [json.loads(line)["id"] for line in reading.results(self.ledger.db, first)]
            assert told == [f"j{line}" for line in sorted(self.promised[first])], "one result a line"

    def _let_it_run(self) -> None:
        for row in self.ledger.all(Batch, state="open"):
            if row.paused_at is not None and row.cancelled_at is None:
                control.resume(self.ledger.db, row.id)
        self.sweep(TIMES.lease + 1)
        me = self.ledger.worker("last/gpu", CLASSES, 64)
        held = self.ledger.claim(me, slices=self.messages + self._dispatch())
        self.messages.clear()
        self.ledger.record(*[outcome(job) for job in held])


def _outcome(job: Claimed, ending: str) -> Outcome:
    match ending:
        case "done" if job.escalated:
            return outcome(job, JobState.ESCALATED, output=b"1", attempts=1)
        case "done":
            return outcome(job)
        case "retry" if job.attempts + 1 < MOST_ATTEMPTS:
            return outcome(job, JobState.QUEUED, attempts=1, delay=2.0, error_code="stalled")
        case "given back":
            return outcome(job, JobState.QUEUED)
        case "on to the cloud" if job.model_class != "cloud":
            return outcome(job, JobState.QUEUED, attempts=1, escalation="its answers failed")
        case _:
            return outcome(job, JobState.FAILED, attempts=1, error_code="stalled")


def live(db: ClockedDatabase, part: float = 1.0) -> None:
    """Lives, others each time; a failing one is shown as steps. part: of the number that a database has."""
    examples = round(part * LIVES["postgres" if db.is_postgres else "sqlite"])
    run_state_machine_as_test(
        partial(Lives, db),  # type: ignore[arg-type]  # anything that makes one will do
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # a failing life is shown as it was found: to make it shorter takes minutes
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
