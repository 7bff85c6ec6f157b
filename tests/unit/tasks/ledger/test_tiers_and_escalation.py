"""In the ledger: tiers hold jobs back, refused jobs are whole from the start, escalated ones stay one row."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import pytest
from sqlalchemy import ColumnElement, Connection, event, text
from sqlalchemy.exc import DBAPIError

from scheduler import dead_classes
from tasks.config import parse
from tasks.ledger import nodes, sweeping
from tasks.ledger.database import Database
from tasks.ledger.endings import NO_LOCAL_SERVER
from tasks.privacy import Reach, Tier
from tasks.routing import Route
from tasks.settings import Times
from tasks.states import JobState
from tests.unit.ledgers import REGISTRY, Ledger, outcome

CLOUD = """
providers:
  - {name: gpu, kind: ollama, url: "http://127.0.0.1:1"}
  - {name: claude, kind: anthropic}
classes:
  small: {serve: [{provider: gpu, model: m}]}
  cloud: {serve: [{provider: claude, model: c}]}
categories:
  summarize: {on_failure: escalate}
"""


@pytest.mark.parametrize("reach", list(Reach))
@pytest.mark.parametrize("tier", list(Tier))
def test_dispatch_sends_no_job_beyond_its_tier(ledger: Ledger, tier: Tier, reach: Reach) -> None:
    """A class that reaches too far gets nothing of it, and it stays queued; one within reach gets it."""
    batch = ledger.submit(2, job={"route": Route("small", tier)})
    ledger.worker()
    order = [Tier.LOCAL_ONLY, Tier.LAN_OK, Tier.CLOUD_OK]
    allowed = order.index(tier) >= [Reach.LOCAL, Reach.LAN, Reach.CLOUD].index(reach)
    assert ledger.fill(reach=reach) == (2 if allowed else 0)
    assert ledger.states(batch) == {"dispatched" if allowed else "queued": 2}


def test_a_worker_that_reaches_further_than_the_configuration_says_counts(ledger: Ledger) -> None:
    """Two nodes may disagree on a class: dispatch believes the further one."""
    from tasks.ledger import claims
    from tasks.ledger.claims import Identity

    ledger.submit(1, job={"route": Route("small", Tier.LOCAL_ONLY)})
    me = Identity("node", "gpu", "run", 1)
    claims.register(ledger.db, me, ["small"], 4, Reach.LAN)
    ledger.beat(me)
    assert ledger.fill(reach=Reach.LOCAL) == 0


def test_refused_jobs_are_terminal_from_the_start(ledger: Ledger) -> None:
    """They are counted, carry their reasons, and a batch of nothing else is over when it opens."""
    verdict = {"action": "escalate", "reasons": [{"id": "r", "reason": "because"}], "policy": "p v1 (h)"}
    batch = ledger.submit(3, job={"route": Route("small", Tier.LAN_OK, JobState.REFUSED, None, verdict)})
    row = ledger.batch(batch)
    assert (row.state, row.refused, row.open, row.total) == ("finished", 3, 0, 3)
    assert {(j.error_code, j.error_message) for j in ledger.jobs(batch)} == {("refused", "because")}
    assert ledger.fill() == 0


def test_a_job_that_escalates_is_the_same_row(ledger: Ledger) -> None:
    """It is queued for the cloud's class with attempts of its own, and remembers where it comes from and why."""
    batch, _, (job,) = ledger.running(1)
    ledger.record(outcome(job, JobState.QUEUED, attempts=1, escalation="its answers failed"))
    row = ledger.jobs(batch)[0]
    assert (row.model_class, row.escalated_from, row.escalation) == ("cloud", "small", "its answers failed")
    assert (row.state, row.attempts) == ("queued", 0)
    me = ledger.worker("node/claude", ("cloud",))
    assert ledger.fill("cloud", reach=Reach.LAN) == 1
    (again,) = ledger.claim(me)
    assert (again.id, again.fence, again.escalated) == (job.id, job.fence + 1, True)
    ledger.record(outcome(again, JobState.ESCALATED, output=b'"x"', attempts=1))
    assert (ledger.batch(batch).escalated, ledger.batch(batch).open) == (1, 0)


def test_a_stale_escalation_changes_nothing(ledger: Ledger) -> None:
    """A worker that lost its lease moves no job to the cloud."""
    batch, _, (job,) = ledger.running(1)
    ledger.wait(1_000)
    sweeping.take_back_expired(ledger.db, REGISTRY)
    assert ledger.record(outcome(job, JobState.QUEUED, escalation="late")) == 1
    assert ledger.jobs(batch)[0].model_class == "small"


def test_a_tier_that_was_tightened_stays_so(ledger: Ledger) -> None:
    """What the border found is stored, and dispatch holds the job back from then on."""
    batch, _, (job,) = ledger.running(1)
    ledger.record(outcome(job, JobState.QUEUED, tier=Tier.LOCAL_ONLY, call=None))
    assert ledger.jobs(batch)[0].tier == "local_only"
    assert ledger.fill(reach=Reach.LAN) == 0
    assert ledger.fill(reach=Reach.LOCAL) == 1


def test_private_work_that_found_nobody_says_so(ledger: Ledger) -> None:
    """At its deadline it expires with a code of its own; other work, and private work in hand, with the plain one."""
    lonely = ledger.submit(1, job={"route": Route("small", Tier.LOCAL_ONLY)}, deadline_s=10)
    plain = ledger.submit(1, deadline_s=10)
    ledger.wait(11)
    sweeping.expire_batches(ledger.db)
    assert [ledger.jobs(b)[0].error_code for b in (lonely, plain)] == [NO_LOCAL_SERVER, "expired"]
    assert ledger.states(lonely) == ledger.states(plain) == {"expired": 1}


def test_a_dead_class_goes_on_where_it_may(ledger: Ledger) -> None:
    """Queued and dispatched work of such categories that may leave goes to the cloud; all other stays."""
    goes = ledger.submit(3, job={"route": Route("small", Tier.CLOUD_OK)})
    stays = ledger.submit(2, job={"route": Route("small", Tier.LAN_OK)})
    assert ledger.fill() > 0
    assert sweeping.escalate_class(ledger.db, "small", ["summarize"]) == 3
    assert {(j.model_class, j.state) for j in ledger.jobs(goes)} == {("cloud", "queued")}
    assert {j.model_class for j in ledger.jobs(stays)} == {"small"}
    assert sweeping.escalate_class(ledger.db, "small", ["code"]) == 0


def _writes(ledger: Ledger, fails: int = 0) -> list[int]:
    """Grows with every transaction that writes; PostgreSQL breaks the first ones off for another's sake."""
    begun: list[int] = []

    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if not (options.get("offload_read") or options.get("postgresql_readonly")):
            begun.append(1)
            if len(begun) <= fails:
                raise DBAPIError("SELECT", None, psycopg.errors.SerializationFailure())

    event.listen(ledger.db.engine, "begin", begin)
    return begun


def test_where_nothing_may_leave_nothing_is_held_up(ledger: Ledger) -> None:
    """A dead class full of work that stays is looked at by reading, at every sweep."""
    ledger.submit(3, job={"route": Route("small", Tier.LAN_OK)})
    writes = _writes(ledger)
    assert sweeping.escalate_class(ledger.db, "small", ["summarize"]) == 0
    assert not writes


def test_an_escalation_that_was_broken_off_is_tried_again(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its transactions by itself; those that are done stay."""
    monkeypatch.setattr(sweeping, "CHUNK", 2)
    ledger.submit(3, job={"route": Route("small", Tier.CLOUD_OK)})
    writes = _writes(ledger, fails=2)
    assert sweeping.escalate_class(ledger.db, "small", ["summarize"]) == 3
    assert len(writes) == 2 + 2


def test_what_was_tightened_since_it_was_looked_for_stays(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tier that counts is the one at the moment of the write."""
    batch = ledger.submit(2, job={"route": Route("small", Tier.CLOUD_OK)})
    look = sweeping._some

    def tightened(db: Database, which: Sequence[ColumnElement[bool]]) -> list[int]:
        found = look(db, which)
        with db.write() as c:
            c.execute(text("UPDATE jobs SET tier = 'local_only' WHERE line = 1"))
        return found

    monkeypatch.setattr(sweeping, "_some", tightened)
    assert sweeping.escalate_class(ledger.db, "small", ["summarize"]) == 1
    assert [j.model_class for j in ledger.jobs(batch)] == ["small", "cloud"]


def test_a_class_is_dead_only_after_a_watched_minute(ledger: Ledger) -> None:
    """Nobody serving it for long enough, seen by every sweep; a pause of the sweep, or a busy worker, begins anew."""
    registry, times = parse(CLOUD, "offload.yaml"), Times()
    batch = ledger.submit(1, job={"route": Route("small", Tier.CLOUD_OK)})

    def watch(seconds: float) -> int:
        moved = 0
        for _ in range(int(seconds / times.sweep)):
            ledger.wait(times.sweep)
            moved += dead_classes.run_once(ledger.db, registry, times)
        return moved

    assert watch(times.class_dead - times.sweep) == 0
    ledger.wait(times.class_dead)  # nobody swept meanwhile
    assert watch(times.class_dead) == 0
    me = ledger.worker()
    assert watch(times.worker_gone - times.sweep) == 0
    ledger.beat(me, consuming=False)
    assert watch(times.class_dead) == 0
    assert watch(3 * times.sweep) == 1
    assert ledger.jobs(batch)[0].model_class == "cloud"


def test_a_class_that_was_drained_on_purpose_is_not_dead(ledger: Ledger) -> None:
    """What people hold back waits for them: nothing of it is paid for elsewhere."""
    registry, times = parse(CLOUD, "offload.yaml"), Times()
    batch = ledger.submit(1, job={"route": Route("small", Tier.CLOUD_OK)})
    me = ledger.worker()
    for _ in range(int(2 * times.class_dead / times.sweep)):
        ledger.wait(times.sweep)
        ledger.beat(me, consuming=False)
        nodes.set_phase(ledger.db, me, nodes.Phase.DRAINED, "", 0)
        assert dead_classes.run_once(ledger.db, registry, times) == 0
    assert ledger.jobs(batch)[0].model_class == "small"
