"""Whatever happens in whatever order, the promises of the ledger hold after every step."""

from __future__ import annotations

import tempfile
from itertools import count
from pathlib import Path
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tasks.errors import BrokerDown
from tasks.ledger import claims, endings, sweeping
from tasks.ledger.claims import Claimed, Identity
from tasks.ledger.record import Outcome
from tasks.states import JobState
from tasks.tables import Output
from tests.unit.ledgers import TIMES, Ledger, outcome

CLASSES = ("coder", "small")
NAMES = ("a/gpu", "b/gpu")
MOST_ATTEMPTS = 3
ENDINGS = ("done", "failed", "retry", "given back")
some = st.data()


class Lives(RuleBasedStateMachine):
    """Producers, two workers, beat, and a Redis that keeps, doubles and loses messages."""

    def __init__(self) -> None:
        super().__init__()
        ids = count(1)  # ids order rows that are alike, and Hypothesis wants the same order each time
        self.ids = patch("secrets.token_hex", lambda _: f"{next(ids):08}")
        self.ids.start()
        self.folder = tempfile.TemporaryDirectory()
        self.ledger = Ledger(Path(self.folder.name) / "ledger.db")
        self.workers: dict[str, Identity] = {}
        self.messages: list[str] = []  #: every slice ever sent; any of them may arrive, any number of times
        self.fences: dict[int, int] = {}  #: the newest claim of each job
        self.hand: list[Claimed] = []  #: what workers believe to hold, rightly or not
        self.batches: dict[str, int] = {}
        self.stale = 0

    @initialize()
    def workers_start(self) -> None:
        for name in NAMES:
            self.workers[name] = self.ledger.worker(name, CLASSES, 4)

    @rule(n=st.integers(1, 6), model_class=st.sampled_from(CLASSES), priority=st.integers(0, 1))
    def submit(self, n: int, model_class: str, priority: int) -> None:
        self.batches[self.ledger.submit(n, model_class=model_class, priority=priority)] = n

    @rule(down=st.booleans())
    def dispatch(self, down: bool) -> None:
        self._dispatch(down)

    def _dispatch(self, down: bool = False) -> list[str]:
        self.ledger.sender.down = down
        try:
            self.ledger.fill(*CLASSES)
        except BrokerDown:
            assert down
        sent = [s[0] for s in self.ledger.sender.slices]
        self.ledger.sender.slices.clear()
        self.messages += sent
        return sent

    def _claim(self, name: str, slices: list[str], started: bool) -> None:
        claimed = self.ledger.claim(self.workers[name], started=started, slices=slices)
        for job in claimed:
            assert job.fence > self.fences.get(job.id, 0), "a fence that was used before"
            self.fences[job.id] = job.fence
        self.hand += claimed

    @precondition(lambda self: self.messages)
    @rule(data=some, name=st.sampled_from(NAMES), started=st.booleans())
    def claim(self, data: st.DataObject, name: str, started: bool) -> None:
        message = data.draw(st.sampled_from(self.messages[::-1]))
        self._claim(name, [message, "forged"], started)

    @rule(name=st.sampled_from(NAMES), started=st.booleans())
    def work(self, name: str, started: bool) -> None:
        self._claim(name, self._dispatch(), started)

    @rule(name=st.sampled_from(NAMES))
    def leases_end(self, name: str) -> None:
        self.ledger.wait(TIMES.lease + 1)
        self.sweep()
        self.ledger.beat(self.workers[name])
        self.work(name, True)

    @precondition(lambda self: self.messages)
    @rule(data=some)
    def put_back(self, data: st.DataObject) -> None:
        claims.put_back(self.ledger.db, data.draw(st.sampled_from(self.messages)))

    @precondition(lambda self: self.hand)
    @rule(data=some)
    def record(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(self.hand), min_size=1, max_size=4, unique_by=id))
        endings_ = [data.draw(st.sampled_from(ENDINGS)) for _ in chosen]
        self.stale += self.ledger.record(*map(_outcome, chosen, endings_))

    @rule(ending=st.sampled_from(ENDINGS))
    def a_stale_worker_answers(self, ending: str) -> None:
        late = [job for job in self.hand if job.fence < self.fences[job.id]][-3:]
        before = [self.ledger.job(job.id) for job in late]
        assert claims.renew(self.ledger.db, {job.id: job.fence for job in late}, TIMES.lease) == set()
        assert self.ledger.record(*[_outcome(job, ending) for job in late]) == len(late)
        self.stale += len(late)
        assert [self.ledger.job(job.id) for job in late] == before

    @precondition(lambda self: self.hand)
    @rule(data=some)
    def renew(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.hand))
        row = self.ledger.job(job.id)
        held = claims.renew(self.ledger.db, {job.id: job.fence}, TIMES.lease)
        assert held == ({job.id} if (row.state, row.fence) == ("running", job.fence) else set())

    @rule(name=st.sampled_from(NAMES))
    def restart(self, name: str) -> None:
        self.workers[name] = self.ledger.worker(name, CLASSES, 4)

    @rule(seconds=st.sampled_from([1.0, 12.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.ledger.wait(seconds)

    @rule()
    def sweep(self) -> None:
        sweeping.take_back_expired(self.ledger.db)
        sweeping.drop_empty_slices(self.ledger.db)
        sweeping.expire_batches(self.ledger.db)

    @precondition(lambda self: len(self.batches) > 1)
    @rule(data=some, cancelled=st.booleans())
    def end(self, data: st.DataObject, cancelled: bool) -> None:
        batch_id = data.draw(st.sampled_from(list(self.batches)))
        if cancelled:
            endings.cancel(self.ledger.db, batch_id)
        else:
            endings.end_all(self.ledger.db, batch_id, JobState.EXPIRED)

    @invariant()
    def promises_hold(self) -> None:
        self.ledger.check()
        jobs = {job.id: job for batch in self.batches for job in self.ledger.jobs(batch)}
        assert len(jobs) == sum(self.batches.values())
        answers = {o.job_id: int(o.output) for o in self.ledger.all(Output)}
        assert all(jobs[i].fence == fence for i, fence in answers.items())
        assert all(job.attempts <= MOST_ATTEMPTS for job in jobs.values())
        assert len(self.ledger.calls(stale=True)) == self.stale

    def teardown(self) -> None:
        """However it stands, workers that do their work bring every batch to its end."""
        for _ in range(200):
            if not any(self.ledger.batch(b).open for b in self.batches):
                break
            self.ledger.wait(TIMES.lease + 1)
            self.sweep()
            for me in self.workers.values():
                self.ledger.beat(me)
            self._dispatch()
            held = self.ledger.claim(self.workers[NAMES[0]], slices=self.messages)
            self.ledger.record(*[outcome(job) for job in held])
        else:
            raise AssertionError("some batch never ends")
        self.ledger.check()
        self.ledger.close()
        self.folder.cleanup()
        self.ids.stop()


def _outcome(job: Claimed, ending: str) -> Outcome:
    match ending:
        case "done":
            return outcome(job)
        case "retry" if job.attempts + 1 < MOST_ATTEMPTS:
            return outcome(job, JobState.QUEUED, attempts=1, delay=2.0, error_code="stalled")
        case "given back":
            return outcome(job, JobState.QUEUED)
        case _:
            return outcome(job, JobState.FAILED, attempts=1, error_code="stalled")


TestLives = Lives.TestCase
TestLives.settings = settings(
    max_examples=30,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
