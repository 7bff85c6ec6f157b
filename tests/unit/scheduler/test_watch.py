"""What is seen and was written down by nobody becomes news once, when it changes; on both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from scheduler import watch
from tasks.config import parse
from tasks.ledger import claims, control, nodes, ticks, usage
from tasks.ledger.claims import Identity
from tasks.ledger.nodes import Phase
from tasks.registry import Registry
from tasks.tables import Event, Usage
from tests.support.at_once import at_once
from tests.unit.ledgers import TIMES, Ledger, outcome

PROVIDER = {
    "name": "c",
    "kind": "anthropic",
    "limits": [{"unit": "requests", "per": "day", "most": 10}, {"unit": "tokens", "per": "minute", "most": 10}],
}
REGISTRY = parse(yaml.safe_dump({"providers": [PROVIDER]}), "a test's")
DAY_S = 24 * 3600.0


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """A ledger in a file, and one in PostgreSQL."""
    made = Ledger(request.getfixturevalue(f"{request.param}_db"))
    yield made
    made.check()


def look(ledger: Ledger, registry: Registry = REGISTRY) -> list[tuple[str, str]]:
    """Look after a moment; what is news by that."""
    before = len(ledger.all(Event))
    ledger.wait(1)
    assert watch.run_once(ledger.db, registry, TIMES) == len(ledger.all(Event)) - before
    return [(row.kind, row.subject) for row in ledger.all(Event)[before:]]


def says(ledger: Ledger, me: Identity, health: str) -> None:
    """A worker's heartbeat, and what it says of its provider."""
    claims.report(ledger.db, me, in_flight=0, serving=["small"], consuming=True, health=health, detail="prompt?")


def old_worker(ledger: Ledger) -> Identity:
    """One that has been there for a while and is well."""
    me = ledger.worker()
    ledger.wait(TIMES.heartbeat)
    ledger.beat(me)
    return me


@pytest.mark.parametrize("health", ["offline", "misconfigured"])
def test_a_provider_that_goes_down_and_comes_back_is_told_twice(ledger: Ledger, health: str) -> None:
    """Once each, however often it is looked at; a busy or loading one is not down."""
    me = old_worker(ledger)
    assert look(ledger) == []
    for alive in ("busy", "warming"):
        says(ledger, me, alive)
        assert look(ledger) == []
    says(ledger, me, health)
    assert look(ledger) == [("provider_down", "node/gpu")]
    assert ledger.all(Event)[0].detail == {"code": health}
    assert look(ledger) == []
    says(ledger, me, "healthy")
    assert look(ledger) == [("provider_up", "node/gpu")]
    assert look(ledger) == []


def test_a_worker_that_is_gone_takes_its_provider_down(ledger: Ledger) -> None:
    """It is up again with the next worker, also when the old one's row was forgotten meanwhile."""
    me = old_worker(ledger)
    look(ledger)
    seen: list[tuple[str, str]] = []
    while not seen:
        ledger.wait(TIMES.notify)
        seen = look(ledger)
    assert seen == [("provider_down", "node/gpu")]
    assert ledger.db.time - ledger.workers()[me.name].last_seen >= TIMES.worker_gone
    claims.leave(ledger.db, me)
    assert look(ledger) == []
    old_worker(ledger)
    assert look(ledger) == [("provider_up", "node/gpu")]


def test_who_never_comes_back_is_forgotten(ledger: Ledger) -> None:
    """A month after its row is gone: containers with new names leave nothing for ever, and are no news then."""

    def kept() -> set[str]:
        return set(ticks.counted(ledger.db, watch.TICK)[1]["down"])

    me = old_worker(ledger)
    look(ledger)
    says(ledger, me, "offline")
    look(ledger)
    claims.leave(ledger.db, me)
    for days, there in ((0, {"node/gpu"}), (29, {"node/gpu"}), (1, set())):
        ledger.wait(days * DAY_S)
        assert look(ledger) == look(ledger) == [], "the first look after days judges nobody"
        assert kept() == there
    old_worker(ledger)
    assert look(ledger) == []


def test_who_has_just_started_has_not_asked_yet(ledger: Ledger) -> None:
    """A rolling restart is no news; a server that is still away after a heartbeat is."""
    me = old_worker(ledger)
    look(ledger)
    claims.leave(ledger.db, me)
    claims.register(ledger.db, Identity("node", "gpu", "next", 1), ["small"], 4)
    assert look(ledger) == []
    ledger.wait(TIMES.heartbeat)
    assert look(ledger) == [("provider_down", "node/gpu")]


def test_what_people_stopped_is_not_down(ledger: Ledger) -> None:
    """A drained node, or one whose server they stopped, is as they want it."""
    me = old_worker(ledger)
    nodes.set_phase(ledger.db, me, Phase.STOPPED, "", 0)
    says(ledger, me, "offline")
    assert look(ledger) == []


def test_who_was_away_judges_nobody_at_once(ledger: Ledger) -> None:
    """A machine that slept wakes with old heartbeats everywhere; workers have until the next look."""
    me = old_worker(ledger)
    look(ledger)
    ledger.wait(3_600)
    assert look(ledger) == []
    ledger.beat(me)
    assert look(ledger) == []


def test_two_that_look_at_once_tell_it_once(ledger: Ledger) -> None:
    """Of two beats one counts; the other's look is of before."""
    me = old_worker(ledger)
    look(ledger)
    says(ledger, me, "offline")
    ledger.wait(1)
    told = at_once(*[lambda: watch.run_once(ledger.db, REGISTRY, TIMES)] * 3)
    assert (sorted(told), len(ledger.all(Event))) == ([0, 0, 1], 1)


def test_a_quota_is_told_at_80_and_100_percent(ledger: Ledger) -> None:
    """Once each in its day, and anew the next day; a minute's limit is none."""
    seen: list[tuple[str, str]] = []
    for _ in range(10):
        usage.reserve(ledger.db, REGISTRY.providers["c"], "m", 1, 0)
        seen += look(ledger)
    assert seen == [("quota_80", "c (requests)"), ("quota_100", "c (requests)")]
    assert len(ledger.all(Usage, per="minute")) == 1
    assert ledger.all(Event)[0].detail == {"most": "10 requests a day"}
    ledger.wait(DAY_S)
    assert look(ledger) == []
    for _ in range(8):
        usage.reserve(ledger.db, REGISTRY.providers["c"], "m", 1, 0)
    assert look(ledger) == [("quota_80", "c (requests)")]


def test_a_backlog_is_told_once_until_it_is_gone(ledger: Ledger) -> None:
    """By class, with a batch; nothing is said of jobs that wait as they should."""
    bound = REGISTRY.notify.backlog_s
    assert bound == 600
    paused = ledger.submit(1, model_class="coder")
    control.pause(ledger.db, paused)
    ledger.submit(1, model_class="embed", kind="audit")
    waits = ledger.submit(2)
    ledger.fill()
    ledger.submit(1, model_class="reason", needs=[waits])
    assert look(ledger) == []
    ledger.wait(bound)
    assert look(ledger) == [("backlog", "small")]
    assert ledger.all(Event)[0].detail == {"batch": waits, "bound": "600"}
    assert look(ledger) == []
    me = ledger.worker()
    ledger.record(*map(outcome, ledger.claim(me)))
    claims.leave(ledger.db, me)
    control.resume(ledger.db, paused)
    assert look(ledger) == [], "what was held back begins to wait when it is let go"
    ledger.wait(bound)
    assert look(ledger) == [("backlog", "coder"), ("backlog", "reason")]
    never = parse(yaml.safe_dump({"notify": {"backlog_s": None}}), "a test's")
    assert look(ledger, never) == []


def test_redis_is_told_of_once_an_outage(ledger: Ledger) -> None:
    """However long it is away and whatever is wrong with it meanwhile; then its return, and the next outage."""

    def swept(trouble: str) -> list[tuple[str, str]]:
        ticks.tick(ledger.db, "sweep", {ticks.TROUBLE: trouble})
        return look(ledger)

    assert look(ledger) == swept("") == []
    assert swept("Redis does not answer") == [("broker", "redis")]
    assert ledger.all(Event)[0].detail == {"trouble": "Redis does not answer"}
    for _ in range(3):
        ledger.wait(3_600)
        assert swept("Redis is out of memory") == []
    assert swept("") == [("broker_up", "redis")]
    assert swept("") == []
    assert swept("Redis does not answer") == [("broker", "redis")]


def test_a_job_that_is_not_due_is_no_backlog(ledger: Ledger) -> None:
    """It waits for a time, not for its turn."""
    _, _, (job,) = ledger.running(1)
    ledger.record(outcome(job, state="queued", delay=3_600.0))  # type: ignore[arg-type]
    ledger.wait(700)
    assert look(ledger) == []
