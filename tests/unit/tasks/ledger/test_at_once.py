"""What a single writer hid: many connections to PostgreSQL change the same rows at once, and every promise holds."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event, text

from tasks import dispatch
from tasks.auditing import Opinion
from tasks.errors import Busy
from tasks.ledger import audits, claims, control, endings, submit, sweeping, usage
from tasks.ledger.claims import Claimed, Identity
from tasks.ledger.database import BROKEN_OFF, Database
from tasks.ledger.record import record
from tasks.privacy import Reach
from tasks.providers import Provider
from tasks.sampling import FIRST
from tasks.schemas import NewJob
from tasks.states import JobState
from tasks.tables import Audit, Batch, CallRow, Job, Sample, Stratum, Usage
from tasks.turns import WINDOW
from tests.support.at_once import at_once
from tests.support.waiting import eventually
from tests.unit.databases import ClockedDatabase
from tests.unit.ledgers import REGISTRY, TIMES, Ledger, Sender, new_jobs, outcome

#: times that two calls are let loose on each other; each time they meet somewhere else
ROUNDS = 3


@pytest.fixture
def ledger(postgres_db: ClockedDatabase) -> Iterator[Ledger]:
    """A ledger in PostgreSQL."""
    made = Ledger(postgres_db)
    yield made
    made.check()


def sent(ledger: Ledger) -> list[str]:
    """Dispatch; the slices."""
    ledger.fill()
    found = [s[0] for s in ledger.sender.slices]
    ledger.sender.slices.clear()
    return found


def cancel(ledger: Ledger, batch_id: str) -> list[Claimed]:
    endings.cancel(ledger.db, batch_id)
    return []


def claiming(ledger: Ledger, me: Identity, slices: list[str]) -> Callable[[], list[Claimed]]:
    return lambda: [job for s in slices for job in claims.claim(ledger.db, s, me, TIMES.lease, started=True)]


# --- two of a kind ---------------------------------------------------------------------------------------


def test_two_claims_share_a_slice(ledger: Ledger) -> None:
    """Every job goes to one of them, under its first fence, and the row says to which."""
    one, two = ledger.worker("a/gpu", capacity=16), ledger.worker("b/gpu", capacity=16)
    for _ in range(ROUNDS):
        batch_id = ledger.submit(32)
        slices = sent(ledger)
        first, second = at_once(claiming(ledger, one, slices), claiming(ledger, two, slices))
        owners = {j.id: one.name for j in first} | {j.id: two.name for j in second}
        assert len(owners) == len(first) + len(second) == 32
        assert {j.id: j.worker for j in ledger.jobs(batch_id)} == owners
        assert {j.fence for j in (*first, *second)} == {1}
        endings.cancel(ledger.db, batch_id)


def test_two_dispatchers_overfill_nothing(ledger: Ledger) -> None:
    """Whoever comes second finds the window full: no job is in two slices, and no slice is sent twice."""
    for _ in range(ROUNDS):
        ledger.worker(capacity=8)
        batches = [ledger.submit(6) for _ in range(4)]
        senders = [Sender() for _ in range(3)]
        at_once(*(partial(dispatch.fill, ledger.db, s, {"small": Reach.LOCAL}, TIMES) for s in senders))
        slices = [one for sender in senders for one in sender.slices]
        assert len({s[0] for s in slices}) == len(slices)
        assert sum(s[2] for s in slices) == len(ledger.all(Job, state="dispatched")) == WINDOW * 8
        for batch_id in batches:
            endings.cancel(ledger.db, batch_id)


def test_submits_of_one_key_make_one_batch(ledger: Ledger) -> None:
    """The first loads it, the others answer with it when it is open."""

    def run() -> str:
        batch_id, fresh = submit.begin(ledger.db, name=None, key="k", body_hash="h")
        if fresh:
            submit.open_batch(ledger.db, batch_id, submit.add(ledger.db, batch_id, new_jobs(7)))
        return batch_id

    assert len(set(at_once(*[run] * 4))) == 1
    (batch,) = ledger.all(Batch)
    assert (batch.total, batch.state) == (7, "open")


def of_templates(names: list[str], n: int) -> list[NewJob]:
    """n lines of each template, which may all be audited."""
    return [
        replace(job, line=len(names) * job.line + i, template=name, audit=0.5)
        for i, name in enumerate(names)
        for job in new_jobs(n)
    ]


def test_submits_make_the_same_strata(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order they come to them, exactly the first of each stratum are always audited."""
    names = ["a", "b", "c", "d"]
    monkeypatch.setattr(submit, "COMMIT_JOBS", 9)  # one template a commit

    def run(seed: int) -> None:
        batch_id, _ = submit.begin(ledger.db, name=None)
        lines = [
            replace(j, line=j.line + 100 * names.index(name))
            for name in random.Random(seed).sample(names, 4)
            for j in of_templates([name], 9)
        ]
        submit.open_batch(ledger.db, batch_id, submit.add(ledger.db, batch_id, lines))

    at_once(*(partial(run, seed) for seed in range(4)))
    assert sorted(s.template for s in ledger.all(Stratum)) == names
    for stratum in ledger.all(Stratum):
        always = [s for s in ledger.all(Sample, stratum=stratum.id) if s.draw < 0]
        assert stratum.seen == len(always) == FIRST


def test_nobody_passes_a_limit(ledger: Ledger) -> None:
    """However many reserve at once, the last that fits is the last that goes; what is given back is free again."""
    limited = Provider.model_validate(
        {"name": "c", "kind": "anthropic", "limits": [{"unit": "requests", "per": "day", "most": 5}]}
    )

    def run() -> usage.Reservation | None:
        try:
            return usage.reserve(ledger.db, limited, "m", 1, 1)
        except Busy:
            return None

    for _ in range(3):
        held = [found for found in at_once(*[run] * 8) if found is not None]
        assert len(held) == 5
        assert [row.amount for row in ledger.all(Usage)] == [5]
        at_once(*(partial(usage.correct, ledger.db, limited, "m", one, None) for one in held))
        assert [row.amount for row in ledger.all(Usage)] == [0]


def test_one_audit_has_one_opinion(ledger: Ledger) -> None:
    """Two look for finished jobs, and two judge: each job is chosen once, and counts once."""
    batch_id = ledger.submit(6, job={"audit": 1.0, "template": "t"})
    me = ledger.worker(capacity=6)
    ledger.record(*map(outcome, claiming(ledger, me, sent(ledger))()))
    assert sum(at_once(*[lambda: audits.choose(ledger.db)] * 3)) == 6
    ids = [row.id for row in ledger.all(Audit)]
    assert len(ids) == 6
    for audit_id in ids:
        judged = [partial(audits.judge, ledger.db, audit_id, Opinion.AGREE, "so", who) for who in ("a", "b", "c")]
        assert at_once(*judged).count(True) == 1
    assert [s.audits for s in ledger.all(Stratum)] == [6]
    assert ledger.states(batch_id) == {"done": 6}


# --- one against the other -------------------------------------------------------------------------------


def test_a_claim_against_a_cancel(ledger: Ledger) -> None:
    """Every job ends cancelled, claimed or not, and what the claim took comes too late."""
    me = ledger.worker(capacity=16)
    for _ in range(ROUNDS):
        batch_id = ledger.submit(32)
        slices = sent(ledger)
        taken, _ = at_once(claiming(ledger, me, slices), partial(cancel, ledger, batch_id))
        assert ledger.states(batch_id) == {"cancelled": 32}
        assert ledger.record(*map(outcome, taken)) == len(taken)


def test_a_pause_against_dispatch_and_claims(ledger: Ledger) -> None:
    """When it returns nothing of the batch is under way but what a worker holds, and nothing more is sent."""
    me = ledger.worker(capacity=16)
    for _ in range(ROUNDS):
        batch_id = ledger.submit(40)
        fill = partial(dispatch.fill, ledger.db, Sender(), {"small": Reach.LOCAL}, TIMES)
        taken, *_ = at_once(claiming(ledger, me, sent(ledger)), partial(control.pause, ledger.db, batch_id), fill)
        assert ledger.states(batch_id) == Counter({"running": len(taken), "queued": 40 - len(taken)})
        assert fill() == 0
        endings.cancel(ledger.db, batch_id)


def test_a_result_against_a_cancel_against_the_sweep(ledger: Ledger) -> None:
    """Recorded twice, cancelled and taken back at the same moment, every job ends once and every call has its row."""
    for _ in range(ROUNDS):
        batch_id, _, held = ledger.running(12)
        ledger.wait(TIMES.lease)
        results = [replace(o, call={**(o.call or {}), "model_served": "m"}) for o in map(outcome, held)]
        doubled = [replace(o) for o in reversed(results)]
        *_, counts = at_once(
            partial(record, ledger.db, results),
            partial(record, ledger.db, doubled),
            partial(cancel, ledger, batch_id),
            partial(sweeping.take_back_expired, ledger.db, REGISTRY),
        )
        states = ledger.states(batch_id)
        assert set(states) <= {"done", "cancelled"}
        calls = ledger.all(CallRow, batch_id=batch_id)
        assert Counter(c.stale for c in calls if c.model_served) == Counter(
            {False: states["done"], True: 24 - states["done"]}
        )
        assert sum(c.error_code == "worker_died" for c in calls) == counts["leases"]
        ledger.check()


@pytest.mark.slow
def test_groups_against_batch_wide_cancels(ledger: Ledger, errors: list[str]) -> None:
    """For a while: deadlocks are tried again and none comes through, and every count is exact."""
    over = threading.Event()
    cancelled: list[str] = []
    recorded: list[int] = []
    me = ledger.worker(capacity=24)

    def work(name: str) -> None:
        mine, chance = ledger.worker(name, capacity=24), random.Random(name)
        while not over.is_set():
            sender = Sender()
            dispatch.fill(ledger.db, sender, {"small": Reach.LOCAL}, TIMES)
            held = claiming(ledger, mine, [s[0] for s in sender.slices])()
            chance.shuffle(held)
            for start in range(0, len(held), 10):
                group = [_any_outcome(job, chance) for job in held[start : start + 10]]
                recorded.append(len(group))
                record(ledger.db, group)

    def cancel_some() -> None:
        try:
            for n in range(2 * ROUNDS):
                made = [ledger.submit(20, priority=n % 2) for _ in range(3)]
                cancelled.extend(made[:2])
                for batch_id in made[:2]:
                    endings.cancel(ledger.db, batch_id)
                ledger.wait(TIMES.lease / 3)
        finally:
            over.set()

    def sweep() -> None:
        while not over.is_set():
            sweeping.take_back_expired(ledger.db, REGISTRY)
            sweeping.drop_empty_slices(ledger.db)
            claims.register(ledger.db, me, ["small"], 24)
            ledger.beat(me)

    at_once(*(partial(work, f"w{n}/gpu") for n in range(3)), cancel_some, sweep)
    assert recorded
    assert {ledger.batch(b).state for b in cancelled} <= {"cancelled", "finished"}
    assert set(errors) <= set(BROKEN_OFF)


def _any_outcome(job: Claimed, chance: random.Random) -> Any:
    match chance.randrange(4):
        case 0:
            return outcome(job, JobState.QUEUED, call=None)
        case 1:
            return outcome(job, JobState.FAILED)
        case _:
            return outcome(job)


@pytest.fixture
def errors(ledger: Ledger) -> list[str]:
    """The SQLSTATEs of what goes wrong in the database, noticed by others or not."""
    seen: list[str] = []
    event.listen(
        ledger.db.engine,
        "handle_error",
        lambda context: seen.append(getattr(context.original_exception, "sqlstate", None) or "none"),
    )
    return seen


def test_a_commit_that_comes_late_is_waited_for(ledger: Ledger) -> None:
    """While a transaction is under way nothing later than its beginning is settled; then all that was written is."""
    db = Database(ledger.db.engine.url.render_as_string(hide_password=False))
    with contextlib.closing(db):
        with db.write() as late:
            written_at = db.now(late)
            with db.read() as c:
                held_back = db.settled(c)
        with db.read() as c:
            then = db.settled(c)
    assert held_back is not None
    assert then is not None
    assert held_back <= written_at < then


Operation = Callable[[Ledger, Identity, list[Claimed]], object]
OPERATIONS: dict[str, Operation] = {
    "record": lambda ledger, me, held: ledger.record(*map(outcome, held)),
    "renew": lambda ledger, me, held: claims.renew(ledger.db, {j.id: j.fence for j in held}, 99),
    "mark started": lambda ledger, me, held: claims.mark_started(ledger.db, held),
    "expire": lambda ledger, me, held: endings.end_all(ledger.db, held[0].batch_id, JobState.EXPIRED),
    "take over": lambda ledger, me, held: ledger.worker(me.name),
    "disown": lambda ledger, me, held: claims.disown(ledger.db, me, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_what_a_deadlock_breaks_off_is_done_again(ledger: Ledger, errors: list[str], operation: Operation) -> None:
    """The other one goes on, and then this one does what it was asked."""
    _, me, held = ledger.running(2, started=False)
    first, second = sorted(j.id for j in held)
    lock = text("SELECT id FROM jobs WHERE id = :id FOR UPDATE")
    with ledger.db.engine.connect() as other, other.begin():
        other.execute(text("SET LOCAL deadlock_timeout = '60s'"))  # it is not the one to be broken off
        other.execute(lock, {"id": second})
        it = threading.Thread(target=operation, args=(ledger, me, held))
        it.start()
        eventually(lambda: _waits(ledger), "it holds the first row and waits for the second")
        other.execute(lock, {"id": first})
    it.join()
    assert errors == ["40P01"]
    rows = [ledger.job(j.id) for j in held]
    said = {(row.state, row.lease_until, row.started_at) for row in rows}
    assert len(said) == 1
    assert said != {("running", ledger.db.time + TIMES.lease, None)}, "it was done"


def _waits(ledger: Ledger) -> bool:
    with ledger.db.read() as c:
        return bool(c.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar())
