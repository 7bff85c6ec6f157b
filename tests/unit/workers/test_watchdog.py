"""Which workers are ended because they live and do nothing, and which are left alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.queues import class_queue
from tasks.settings import Times
from tests.support.pool import Redis
from workers import watchdog
from workers.watchdog import EX_SOFTWARE, LOOKS, START_S, Still, Watchdog

TIMES = Times()
LOOK_S = TIMES.watchdog / LOOKS


@dataclass
class Worker:
    """What a watchdog sees of a worker, set by the test."""

    serves: bool = True
    room: bool = True
    turns: int = 0
    ticked_at: float = 0.0
    stopped: bool = False
    line: Any = field(init=False)

    def __post_init__(self) -> None:
        self.line = SimpleNamespace(open=lambda: self.room)

    @property
    def loop(self) -> Any:
        """Its loop."""
        return _Loop(self)


class _Loop:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.line = worker.line

    @property
    def ticked_at(self) -> float:
        return self._worker.ticked_at

    def serves(self, _: str) -> bool:
        return self._worker.serves

    def stop_taking(self) -> None:
        self._worker.stopped = True


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A real Redis."""
    made = Redis(tmp_path_factory.mktemp("redis"))
    yield made
    made.close()


@dataclass
class Scene:
    """A worker, its watchdog, and a clock that only the test moves."""

    worker: Worker
    dog: Watchdog
    redis: Redis
    now: float = 1000.0

    def looks(self, seconds: float) -> bool:
        """Whether the worker is found deaf within so many seconds of looks."""
        until = self.now + seconds
        while self.now < until:
            self.now += LOOK_S
            if self.dog._deaf():
                return True
        return False


@pytest.fixture
def scene(server: Redis, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A worker with room whose list holds a slice, and whose Celery is connected."""
    worker = Worker()
    db: Any = SimpleNamespace(is_postgres=True)
    heartbeat: Any = worker
    dog = Watchdog(server.url, db, worker.loop, heartbeat, ["small", "coder"], TIMES, drain_s=0.0)
    dog._on_ready()
    made = Scene(worker, dog, server)
    monkeypatch.setattr("workers.watchdog.time.monotonic", lambda: made.now)
    server.client.flushall()
    server.client.lpush(class_queue("coder"), "a slice")
    return made


def test_a_worker_that_receives_nothing_of_what_waits_is_deaf(scene: Scene) -> None:
    """It had room, slices waited, and it received none, for all of the time; not a look earlier."""
    assert not scene.looks(TIMES.watchdog)
    assert scene.looks(2 * LOOK_S)


def test_whoever_receives_anything_is_not_deaf(scene: Scene) -> None:
    """A message of any kind shows that the connection lives."""
    for _ in range(5):
        assert not scene.looks(TIMES.watchdog / 2)
        scene.dog._on_received()


@pytest.mark.parametrize("why", ["nothing waits", "no room", "takes nothing", "redis is away"])
def test_whoever_has_nothing_to_receive_is_not_deaf(why: str, scene: Scene) -> None:
    """A restart would mend nothing; and the time starts anew when there is something again."""
    assert not scene.looks(TIMES.watchdog - LOOK_S)
    url = scene.dog._broker_url
    if why == "nothing waits":
        scene.redis.client.flushall()
    scene.worker.room, scene.worker.serves = why != "no room", why != "takes nothing"
    if why == "redis is away":
        scene.dog._broker_url = "redis://127.0.0.1:9/0"
    assert not scene.looks(3 * TIMES.watchdog)
    scene.worker.room = scene.worker.serves = True
    scene.dog._broker_url = url
    scene.redis.client.lpush(class_queue("coder"), "a slice")
    assert not scene.looks(TIMES.watchdog)
    assert scene.looks(2 * LOOK_S)


def test_a_first_connection_has_its_time(scene: Scene) -> None:
    """At hurried times a worker that starts is not ended before Celery is there."""
    scene.dog._deaf_s = max(TIMES.divided(10).watchdog, START_S)
    assert not scene.looks(START_S)


def test_a_heartbeat_or_a_loop_that_stands_still_is_named(scene: Scene) -> None:
    """Either holds leases for nothing, for longer than others wait for a worker."""
    for what in ("turns", "ticked_at"):
        assert scene.dog._stuck(scene.now) == ""
        for moves in (True, False):
            for _ in range(int(TIMES.worker_gone / LOOK_S)):
                scene.now += LOOK_S
                scene.worker.turns += 1
                scene.worker.ticked_at += 1
                if not moves:
                    setattr(scene.worker, what, -1)
                assert scene.dog._stuck(scene.now) == ""
        scene.now += 2 * LOOK_S
        assert scene.dog._stuck(scene.now) == {"turns": "the heartbeat", "ticked_at": "the loop"}[what]
        scene.worker.turns, scene.worker.ticked_at = 5, 5.0


def test_a_process_that_was_stopped_itself_proves_nothing() -> None:
    """After SIGSTOP the first look has to wait for a second one."""
    still = Still(gap_s=10.0)
    assert [still.seconds("x", now) for now in (0.0, 5.0, 12.0)] == [0.0, 5.0, 12.0]
    assert [still.seconds("x", now) for now in (100.0, 105.0)] == [0.0, 5.0]
    assert still.seconds("y", 106.0) == 0.0


def test_an_end_in_order_is_forced_after_its_time(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It drains as on SIGTERM; a Celery that hangs is not waited for, and the status says that it failed."""
    did: list[object] = []
    monkeypatch.setattr(watchdog, "END_S", 0.0)
    monkeypatch.setattr("workers.watchdog.os.kill", lambda pid, number: did.append(number.name))
    monkeypatch.setattr("workers.watchdog.os._exit", did.append)
    scene.dog._times = TIMES.divided(1000)
    scene.dog._end_in_order("slices wait")
    assert did == ["SIGTERM", EX_SOFTWARE]
    assert scene.worker.stopped
    assert scene.dog.tripped
    scene.dog._stop_asked.set()  # the worker's own drain came to its end
    scene.dog._end_in_order("slices wait")
    assert did == ["SIGTERM", EX_SOFTWARE, "SIGTERM"]
