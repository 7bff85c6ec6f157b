"""A real ledger under a clock that only the test moves, with every state change of every job written down."""

from __future__ import annotations

import dataclasses
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import select, text
from sqlalchemy.engine import Row
from sqlmodel import SQLModel

from tasks import dispatch
from tasks.config import parse
from tasks.errors import BrokerDown
from tasks.ledger import claims, submit
from tasks.ledger.claims import Claimed, Identity
from tasks.ledger.record import Outcome, record
from tasks.privacy import Reach
from tasks.routing import Route
from tasks.schemas import NewJob
from tasks.settings import Times
from tasks.states import ANSWERED, LIVE, MOVES, TERMINAL, BatchState, JobState
from tasks.states import COUNTED as COUNTED_STATES
from tasks.tables import Batch, CallRow, Job, Slice, Worker
from tests.unit.databases import ClockedDatabase

TIMES = Times()
#: nothing is configured
REGISTRY = parse("{}", "the defaults")
COUNTED = [s.value for s in sorted(TERMINAL)]


class Sender:
    """Keeps the slices that were sent; while `down` it is a Redis that does not answer."""

    def __init__(self) -> None:
        self.slices: list[tuple[str, str, int]] = []
        self.down = False
        self.fails_after: int | None = None

    def send_slice(self, slice_id: str, batch_id: str, model_class: str, jobs: int) -> None:
        if self.down or (self.fails_after is not None and len(self.slices) >= self.fails_after):
            raise BrokerDown("Redis does not answer")
        self.slices.append((slice_id, model_class, jobs))


class Ledger:
    """A ledger, and what tests do to it in few words."""

    def __init__(self, db: ClockedDatabase) -> None:
        self.db = db
        self.db.anew()
        self.sender = Sender()

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.db.time += seconds

    # --- the ways of a job -------------------------------------------------------------------------------

    def submit(
        self,
        n: int = 3,
        *,
        model_class: str = "small",
        priority: int = 0,
        prefixes: Sequence[int | None] = (),
        opened: bool = True,
        job: Mapping[str, Any] | None = None,
        **begin: Any,
    ) -> str:
        """An open batch of n jobs, or one that is still loading. job: fields that all of them have instead."""
        batch_id, _ = submit.begin(self.db, name=begin.pop("name", None), priority=priority, **begin)
        lines = [dataclasses.replace(line, **(job or {})) for line in new_jobs(n, model_class, prefixes)]
        added = submit.add(self.db, batch_id, lines, priority)
        if opened:
            submit.open_batch(self.db, batch_id, added)
        return batch_id

    def worker(self, name: str = "node/gpu", classes: Sequence[str] = ("small",), capacity: int = 4) -> Identity:
        """A worker that registers and takes work."""
        node, _, provider = name.partition("/")
        me = Identity(node, provider, secrets.token_hex(4), 1)
        claims.register(self.db, me, classes, capacity)
        self.beat(me)
        return me

    def beat(self, me: Identity, *, consuming: bool = True) -> None:
        """A worker's heartbeat."""
        claims.report(
            self.db,
            me,
            in_flight=0,
            serving=self.workers()[me.name].classes,
            consuming=consuming,
            health="healthy",
            detail="",
        )

    def fill(self, *classes: str, reach: Reach = Reach.LOCAL) -> int:
        """Dispatch; the jobs sent. reach: of all these classes."""
        return dispatch.fill(self.db, self.sender, dict.fromkeys(classes or ("small",), reach), TIMES)

    def claim(self, me: Identity, *, started: bool = True, slices: Sequence[str] | None = None) -> list[Claimed]:
        """Claim these slices, or all that were sent since the last time."""
        if slices is None:
            slices = [s[0] for s in self.sender.slices]
            self.sender.slices.clear()
        held = [j for s in slices for j in claims.claim(self.db, s, me, TIMES.lease, started=started)]
        suspects = [j for j in held if j.crashes >= claims.ALONE_CRASHES]
        if started and suspects:  # as a worker does when their turn has come
            claims.mark_started(self.db, suspects)
        return held

    def runs(self, me: Identity) -> Iterator[list[Claimed]]:
        """Claim all that was sent; what of it a worker starts together (workers/line.py), one after another."""
        held = self.claim(me, started=False)
        alone = [j for j in held if j.crashes >= claims.ALONE_CRASHES]
        for some in (alone, [j for j in held if j not in alone]):
            if some:
                claims.mark_started(self.db, some)
                yield some

    def running(self, n: int = 1, *, started: bool = True, **submitted: Any) -> tuple[str, Identity, list[Claimed]]:
        """A batch of n jobs, all claimed by a new worker."""
        batch_id = self.submit(n, **submitted)
        me = self.worker(capacity=n)
        self.fill()
        return batch_id, me, self.claim(me, started=started)

    def record(self, *outcomes: Outcome) -> int:
        """Record in one group; how many were stale."""
        return record(self.db, list(outcomes))

    # --- looking -----------------------------------------------------------------------------------------

    def all(self, table: type[SQLModel], **where: Any) -> list[Row[Any]]:
        """The rows of a table, by their keys: PostgreSQL puts new ones where old ones were."""
        columns = table.__table__  # type: ignore[attr-defined]
        query = select(columns).order_by(*columns.primary_key.columns)
        for name, value in where.items():
            query = query.where(columns.c[name] == value)
        with self.db.read() as c:
            return list(c.execute(query).all())

    def job(self, job_id: int) -> Row[Any]:
        """One job."""
        return self.all(Job, id=job_id)[0]

    def jobs(self, batch_id: str) -> list[Row[Any]]:
        """A batch's jobs in line order."""
        return sorted(self.all(Job, batch_id=batch_id), key=lambda row: row.line)

    def states(self, batch_id: str) -> Counter[str]:
        """How many jobs of a batch are in each state."""
        return Counter(str(row.state) for row in self.jobs(batch_id))

    def batch(self, batch_id: str) -> Row[Any]:
        """A batch's row."""
        return self.all(Batch, id=batch_id)[0]

    def calls(self, **where: Any) -> list[Row[Any]]:
        """Call rows."""
        return self.all(CallRow, **where)

    def slices(self) -> list[Row[Any]]:
        """Slices sent and not claimed."""
        return self.all(Slice)

    def workers(self) -> dict[str, Row[Any]]:
        """Worker rows by name."""
        return {row.name: row for row in self.all(Worker)}

    # --- what always holds -------------------------------------------------------------------------------

    def check(self) -> Seen:
        """The promises that hold after every transaction, whatever it was; what there is."""
        with self.db.read() as c:
            moves, touched, slices, batches, jobs, outputs, ends = (c.execute(look).all() for look in _LOOKS)
        assert not [m for m in moves if m.becomes not in MOVES.get(JobState(m.was), frozenset())]
        assert not touched, "what has ended was written to"
        sent = {row.id for row in slices}
        for batch in batches:
            _check_counters(batch, Counter(str(j.state) for j in jobs if j.batch_id == batch.id))
        for job in jobs:
            assert (job.state == JobState.DISPATCHED) == (job.slice_id is not None)
            assert job.slice_id is None or job.slice_id in sent, "a slice that nobody would look for"
            assert (job.state == JobState.RUNNING) == (job.lease_until is not None)
            assert (job.state in TERMINAL) == (job.finished_at is not None)
        answered = {(j.id, j.fence) for j in jobs if j.state in ANSWERED}
        assert {(o.job_id, o.fence) for o in outputs} == answered, "one answer each, under the fence of its job"
        opened = {batch.id for batch in batches if batch.opened_at is not None}
        counted = Counter((j.id, str(j.state)) for j in jobs if j.state in COUNTED_STATES and j.batch_id in opened)
        assert Counter(tuple(end) for end in ends) == counted, "telemetry has every end that it counts, once"
        return Seen({b.id: b for b in batches}, {j.id: j for j in jobs})


class Seen(NamedTuple):
    """A ledger at one moment: rows by id."""

    batches: dict[str, Row[Any]]
    jobs: dict[int, Row[Any]]


#: what check() looks at
_LOOKS = (
    text("SELECT DISTINCT was, becomes FROM moves"),
    text("SELECT * FROM touched"),
    text("SELECT id FROM slices"),
    text("SELECT * FROM batches"),
    text("SELECT * FROM jobs"),
    text("SELECT job_id, fence FROM outputs"),
    text("SELECT job_id, ended FROM calls WHERE ended IS NOT NULL AND job_id > 0"),
)


def _check_counters(batch: Row[Any], states: Counter[str]) -> None:
    assert batch.total == states.total()
    assert {s: getattr(batch, s) for s in COUNTED} == {s: states[s] for s in COUNTED}
    assert batch.open == sum(states[s] for s in LIVE)
    over = batch.state in (BatchState.FINISHED, BatchState.CANCELLED)
    assert over == (batch.open == 0 and batch.opened_at is not None)
    assert over == (batch.finished_at is not None)
    assert (batch.state == BatchState.CANCELLED) == (over and batch.cancelled_at is not None)


def new_jobs(n: int, model_class: str = "small", prefixes: Sequence[int | None] = ()) -> list[NewJob]:
    """Valid lines; `prefixes` are those of the first ones."""
    return [
        NewJob(
            line=i + 1,
            line_id=f"j{i + 1}",
            category="summarize",
            model=None,
            body=b'{"prompt":"x"}',
            prefix=prefixes[i] if i < len(prefixes) else None,
            route=Route(model_class),
        )
        for i in range(n)
    ]


def outcome(job: Claimed, state: JobState = JobState.DONE, **more: Any) -> Outcome:
    """What became of a claimed job; a done one answers its own fence."""
    if state is JobState.DONE:
        more.setdefault("output", str(job.fence).encode())
        more.setdefault("attempts", 1)
    return Outcome(job.id, job.fence, job.batch_id, state, call=more.pop("call", call_row(job)), **more)


def call_row(job: Claimed) -> dict[str, Any]:
    """The columns of a call row that have no default."""
    return {
        "job_id": job.id,
        "batch_id": job.batch_id,
        "fence": job.fence,
        "category": job.category,
        "model_class": job.model_class,
        "provider": "gpu",
        "node": "node",
        "model_asked": "m",
        "started_at": 1_000_000.0,
    }
