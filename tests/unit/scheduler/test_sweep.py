"""The sweep finds what Redis lost, and harms nothing that Redis still holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest
import redis

from scheduler import redis_keys, sweep, watch
from tasks.app import Publisher, make_app
from tasks.errors import BrokerDown, OtherTables
from tasks.ledger import endings, schema, sweeping, ticks
from tasks.queues import class_queue
from tasks.settings import Times
from tasks.tables import Event
from tests.support.pool import Redis
from tests.unit.ledgers import REGISTRY, Ledger, outcome

TIMES = Times()
QUEUE = class_queue("small")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A real Redis."""
    made = Redis(tmp_path_factory.mktemp("redis"))
    yield made
    made.close()


@pytest.fixture
def broker(server: Redis) -> redis.Redis:
    """The Redis, empty."""
    server.client.flushall()
    return server.client


@pytest.fixture
def publisher(server: Redis, broker: redis.Redis) -> Iterator[Publisher]:
    """What really sends slices."""
    made = Publisher(make_app(server.url))
    yield made
    made.close()


class Both:
    """Sends for real and keeps a note of it."""

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher
        self.sent: list[str] = []

    def send_slice(self, slice_id: str, batch_id: str, model_class: str, jobs: int) -> None:
        self.publisher.send_slice(slice_id, batch_id, model_class, jobs)
        self.sent.append(slice_id)


@pytest.fixture
def sender(publisher: Publisher) -> Both:
    """The sender under test's eyes."""
    return Both(publisher)


@pytest.fixture
def sent(ledger: Ledger, broker: redis.Redis, sender: Both) -> str:
    """A batch of two slices, sent for real, and late."""
    batch_id = ledger.submit(2)
    ledger.worker(capacity=1)
    sweep.run_once(ledger.db, broker, sender, REGISTRY, TIMES)
    assert broker.llen(QUEUE) == 2
    ledger.wait(TIMES.slice_lost)
    sender.sent.clear()
    return batch_id


def resend(ledger: Ledger, broker: redis.Redis, sender: Both) -> int:
    return sweep.resend_lost(ledger.db, broker, sender, TIMES.slice_lost)


def test_a_slice_in_its_list_is_not_sent_again(ledger: Ledger, broker: redis.Redis, sender: Both, sent: str) -> None:
    """A message that only waits for a worker is no loss."""
    assert resend(ledger, broker, sender) == 0
    assert broker.llen(QUEUE) == 2


def test_a_slice_a_worker_has_received_is_not_sent_again(
    ledger: Ledger, broker: redis.Redis, sender: Both, sent: str
) -> None:
    """What kombu keeps in `unacked` is with a worker, but is not for ever: it may be nobody's any more."""
    for n, raw in enumerate(broker.lrange(QUEUE, 0, -1)):
        broker.hset("unacked", f"tag{n}", json.dumps([json.loads(raw), "offload", QUEUE]))
    broker.delete(QUEUE)
    assert resend(ledger, broker, sender) == 0
    ledger.wait(TIMES.slice_lost)
    assert resend(ledger, broker, sender) == 2, "a worker that was killed leaves what it had received there"


def test_a_slice_that_is_nowhere_is_sent_again(ledger: Ledger, broker: redis.Redis, sender: Both, sent: str) -> None:
    """After a FLUSHALL every unclaimed slice comes again under its own id, once."""
    broker.flushall()
    assert resend(ledger, broker, sender) == 2
    assert sorted(sender.sent) == sorted(s.id for s in ledger.slices())
    assert broker.llen(QUEUE) == 2
    ledger.wait(TIMES.slice_lost - 1)
    assert resend(ledger, broker, sender) == 0, "sent again just now"


def test_only_what_is_lost_is_sent_again(ledger: Ledger, broker: redis.Redis, sender: Both, sent: str) -> None:
    """One message of two was lost."""
    broker.lpop(QUEUE)
    assert resend(ledger, broker, sender) == 1
    assert broker.llen(QUEUE) == 2


def test_a_young_slice_is_given_time(ledger: Ledger, broker: redis.Redis, sender: Both) -> None:
    """A slice that was sent a moment ago may be anywhere."""
    ledger.submit(1)
    ledger.worker()
    sweep.run_once(ledger.db, broker, sender, REGISTRY, TIMES)
    broker.flushall()
    ledger.wait(TIMES.slice_lost - 0.1)
    assert resend(ledger, broker, sender) == 0


@pytest.mark.parametrize("junk", [b"", b"\x80\x04", b"[]", b"7", b'{"headers": 5}', b'{"headers": {"id": null}}', b"{"])
def test_junk_in_redis_is_passed_over(
    ledger: Ledger, broker: redis.Redis, sender: Both, sent: str, junk: bytes
) -> None:
    """Whatever stands in the list or the hash, the slices that are there are seen."""
    broker.lpush(QUEUE, junk)
    broker.hset("unacked", "a", junk)
    broker.hset("unacked", "b", b"[" + junk + b"]")
    broker.lpop(QUEUE, 1)
    broker.lpush(QUEUE, junk)
    assert resend(ledger, broker, sender) == 0


def test_a_list_too_long_to_be_ours_is_deleted(
    ledger: Ledger, broker: redis.Redis, sender: Both, sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of stale messages is not worked through: the list goes, and its slices are sent again."""
    monkeypatch.setattr(redis_keys, "MOST_STALE", 10)
    message = broker.lindex(QUEUE, 0)
    assert message
    broker.lpush(QUEUE, *[message] * 10)
    counts = sweep.run_once(ledger.db, broker, sender, REGISTRY, TIMES)
    assert (counts["mended"], counts["slices"]) == (0, 0), "two of them are out"
    broker.lpush(QUEUE, message)
    counts = sweep.run_once(ledger.db, broker, sender, REGISTRY, TIMES)
    assert (counts["mended"], counts["slices"]) == (1, 2)
    assert broker.llen(QUEUE) == 2


def test_what_waits_in_its_list_hides_no_lost_slice(
    ledger: Ledger, broker: redis.Redis, sender: Both, sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many slices a sweep sends again, older ones that are well do not take their place."""
    monkeypatch.setattr(sweep, "SLICES_A_SWEEP", 1)
    waits, lost = ledger.slices()
    with ledger.db.write() as c:
        c.execute(sweeping.slices.update().where(sweeping.slices.c.id == waits.id).values(sent_at=0))
    (message,) = [raw for raw in broker.lrange(QUEUE, 0, -1) if redis_keys.message_id(raw) == lost.id]
    broker.lrem(QUEUE, 1, message)  # type: ignore[arg-type]  # bytes are fine
    assert (resend(ledger, broker, sender), sender.sent) == (1, [lost.id])


def test_a_sweep_sends_so_many_again(
    ledger: Ledger, broker: redis.Redis, sender: Both, sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others follow with the next sweeps."""
    monkeypatch.setattr(sweep, "SLICES_A_SWEEP", 1)
    broker.flushall()
    assert [resend(ledger, broker, sender) for _ in range(3)] == [1, 1, 0]
    assert sorted(sender.sent) == sorted(s.id for s in ledger.slices())


def test_a_slice_that_was_emptied_is_not_looked_for(
    ledger: Ledger, broker: redis.Redis, sender: Both, sent: str
) -> None:
    """A cancelled batch leaves no slice behind."""
    endings.cancel(ledger.db, sent)
    broker.flushall()
    counts = sweep.run_once(ledger.db, broker, sender, REGISTRY, TIMES)
    assert (counts["slices"], counts["sent"]) == (0, 0)
    assert not ledger.slices()


def test_one_sweep_does_everything(ledger: Ledger, broker: redis.Redis, sender: Both) -> None:
    """Leases, deadlines, loads, workers, lost slices, and the windows: counted, and its time written down."""
    _, me, (job,) = ledger.running(1)
    ledger.submit(2, opened=False)
    ledger.wait(TIMES.loading_abandoned)
    ledger.beat(me)
    counts = sweep.run_once(ledger.db, broker, sender, REGISTRY, TIMES)
    assert {name: n for name, n in counts.items() if n} == {"leases": 1, "loads": 1, "sent": 1}
    assert ticks.last_tick(ledger.db, "sweep") == 0
    ledger.record(outcome(ledger.claim(me, slices=sender.sent)[0]))
    ledger.wait(30 * 24 * 3600)
    counts = sweep.run_once(ledger.db, broker, sender, REGISTRY, TIMES)
    assert {name: n for name, n in counts.items() if n} == {"workers": 1, "held_off": 1}
    assert job.fence == 1


def test_newer_tables_are_not_swept(
    ledger: Ledger, broker: redis.Redis, sender: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A beat that goes on while the ledger is upgraded writes nothing more, not even that it ran."""
    batch_id, _, _ = ledger.running(2)
    ledger.wait(TIMES.lease)
    monkeypatch.setattr(schema, "REVISION", "0001")  # this program is older than the tables by now
    with pytest.raises(OtherTables, match="newer tables"):
        sweep.run_once(ledger.db, broker, sender, REGISTRY, TIMES)
    assert ledger.states(batch_id) == {"running": 2}
    assert ticks.last_tick(ledger.db, "sweep") is None


def test_leases_that_ended_while_nobody_swept_have_a_sweeps_time(
    ledger: Ledger, broker: redis.Redis, sender: Both
) -> None:
    """After an outage workers that live give back or record first, without a crash; the next sweep waits no more."""

    def swept() -> Counter[str]:
        counts = sweep.run_once(ledger.db, broker, sender, REGISTRY, TIMES)
        return Counter({name: counts[name] for name in ("held_off", "leases") if counts[name]})

    _, _, (one, two) = ledger.running(2)
    swept()
    ledger.wait(TIMES.lease + 1)
    assert swept() == {"held_off": 1}
    ledger.record(outcome(one))
    assert swept() == {"leases": 1}, "once is enough"
    assert (ledger.job(one.id).crashes, ledger.job(two.id).crashes) == (0, 1)
    ledger.wait(TIMES.sweep)
    assert swept() == {}


@pytest.mark.parametrize(
    ("setting", "value", "normal", "says"),
    [("maxmemory", "1", "0", "out of memory"), ("replicaof", "127.0.0.1 1", "NO ONE", "read-only")],
)
def test_a_redis_that_takes_no_writes_is_told(
    ledger: Ledger, broker: redis.Redis, publisher: Publisher, setting: str, value: str, normal: str, says: str
) -> None:
    """Submits are accepted and wait; the alert is written once, and the pool goes on when Redis takes writes again."""

    def arrange(what: str) -> None:
        if setting == "replicaof":
            broker.replicaof(*what.split())
        else:
            broker.config_set(setting, what)

    ledger.worker()
    arrange(value)
    try:
        batch_id = ledger.submit(3)
        for _ in range(2):
            counts = sweep.run_once(ledger.db, broker, publisher, REGISTRY, TIMES)
            assert counts["broker_down"] == 1
            watch.run_once(ledger.db, REGISTRY, TIMES)
        with pytest.raises(BrokerDown, match=says):
            publisher.send_slice("s", "b", "small", 1)
    finally:
        arrange(normal)
    (event,) = ledger.all(Event)
    assert (event.kind, event.subject) == ("broker", "redis")
    assert says in event.detail["trouble"]
    assert ledger.states(batch_id) == {"queued": 3}
    assert sweep.run_once(ledger.db, broker, ledger.sender, REGISTRY, TIMES)["sent"] == 3
    watch.run_once(ledger.db, REGISTRY, TIMES)
    assert [row.kind for row in ledger.all(Event)] == ["broker", "broker_up"]


@pytest.mark.slow
@pytest.mark.parametrize("down", ["redis", "sender"])
def test_a_redis_that_is_away_stops_only_what_needs_it(
    ledger: Ledger, broker: redis.Redis, sent: str, down: str
) -> None:
    """Leases and deadlines are swept all the same, and the tick says that Redis was away."""
    if down == "redis":
        broker = redis.Redis(port=1, socket_connect_timeout=0.1)
    else:
        broker.flushall()
        ledger.sender.down = True
    ledger.wait(24 * 3600)
    late = ledger.submit(1)
    counts = sweep.run_once(ledger.db, broker, ledger.sender, REGISTRY, TIMES)
    assert counts["expired"] == 2
    assert ledger.states(late)["queued"] + ledger.states(late)["dispatched"] == 1
    assert ticks.last_tick(ledger.db, "sweep") == 0


def test_a_sweep_twice_at_once_does_no_harm(ledger: Ledger, broker: redis.Redis, sender: Both, sent: str) -> None:
    """A second beat only repeats what is already done."""
    broker.flushall()
    for _ in range(2):
        sweep.run_once(ledger.db, broker, sender, REGISTRY, TIMES)
    assert broker.llen(QUEUE) == 2
    assert ledger.states(sent) == {"dispatched": 2}


def test_a_step_that_fails_does_not_turn_recovery_off(
    ledger: Ledger, broker: redis.Redis, sender: Both, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leases are taken back by every sweep, whatever the sweeps before could not do after that."""
    monkeypatch.setattr(sweep, "fill", lambda *_: 1 / 0)
    batch_id, _, _ = ledger.running(2)
    for _ in range(20):
        ledger.wait(TIMES.sweep)
        with pytest.raises(ZeroDivisionError):
            sweep.run_once(ledger.db, broker, sender, REGISTRY, TIMES)
    assert ledger.states(batch_id) == {"queued": 2}
