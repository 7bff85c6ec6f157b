"""Who goes into the loop next."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.support.waiting import eventually
from workers.line import Line


class Loop:
    """What a line asks of the loop, set by the test."""

    def __init__(self) -> None:
        self.room = self.empty = self.takes = True
        self.line = Line(lambda: self.room, lambda: self.empty, lambda: self.takes)
        self.went: list[str] = []
        self._threads: list[threading.Thread] = []

    def come(self, name: str, priority: int = 0, *, alone: bool = False) -> None:
        """A slice claimed in a thread of its own gets in line."""

        def go() -> None:
            with self.line.turn(priority, alone=alone) as takes:
                self.went.append(name if takes else f"{name} given back")

        before = len(self.line._places) + len(self.went)
        self._threads.append(threading.Thread(target=go, daemon=True))
        self._threads[-1].start()
        eventually(lambda: len(self.line._places) + len(self.went) > before, f"{name} came")

    def moved(self, **now: bool) -> None:
        """The loop changes, and says so."""
        for name, value in now.items():
            setattr(self, name, value)
        self.line.moved()

    def all_went(self, n: int) -> list[str]:
        """The order in which n slices went in."""
        eventually(lambda: len(self.went) == n, f"{n} slices went in: {self.went}")
        return self.went


def _quiet(condition: Callable[[], bool]) -> None:
    """The condition holds although others had their chance."""
    for _ in range(3):
        threading.Event().wait(0.02)
        assert condition()


def test_slices_go_in_by_priority_and_then_in_the_order_they_came() -> None:
    """Whoever is first in line goes first, and a higher priority is before all lower ones."""
    loop = Loop()
    loop.room = False
    for name, priority in (("a", 0), ("b", 0), ("urgent", 5)):
        loop.come(name, priority)
    loop.moved(room=True)
    assert loop.all_went(3) == ["urgent", "a", "b"]


def test_a_full_line_is_closed() -> None:
    """A slice that comes now goes in at once only when there is room and nobody is before it."""
    loop = Loop()
    assert loop.line.open()
    loop.room = False
    assert not loop.line.open()
    loop.come("a")
    loop.room = True
    assert not loop.line.open()
    loop.moved()
    assert loop.all_went(1) == ["a"]
    assert loop.line.open()


def test_suspects_go_in_alone() -> None:
    """Suspects wait for an empty loop, and nobody follows until it is empty again."""
    loop = Loop()
    loop.empty = False
    loop.come("suspects", alone=True)
    loop.come("next")
    _quiet(lambda: loop.went == [])
    loop.moved(empty=True)
    assert loop.all_went(1) == ["suspects"]
    assert not loop.line.open()
    loop.empty = False
    loop.line.moved()
    _quiet(lambda: loop.went == ["suspects"])
    loop.moved(empty=True)
    assert loop.all_went(2) == ["suspects", "next"]


def test_a_worker_that_stops_taking_holds_nobody() -> None:
    """Everybody in line is told to give back."""
    loop = Loop()
    loop.room = False
    loop.come("a")
    loop.come("b", alone=True)
    loop.moved(takes=False)
    assert sorted(loop.all_went(2)) == ["a given back", "b given back"]


def test_who_enters_beside_others_meets_nobody_alone() -> None:
    """Suspects begin when the last of those is in, and while they run nobody else enters."""
    loop = Loop()
    with loop.line.entering() as free:
        assert free
        loop.come("suspects", alone=True)
        _quiet(lambda: loop.went == [])
        loop.empty = False
    loop.line.moved()
    _quiet(lambda: loop.went == [])
    loop.moved(empty=True)
    assert loop.all_went(1) == ["suspects"]
    with loop.line.entering() as free:
        assert not free


def test_suspects_on_their_way_in_meet_nobody() -> None:
    """From when it is their turn, before the loop has them, nobody enters beside them or passes them."""
    loop = Loop()
    with loop.line.turn(0, alone=True):
        with loop.line.entering() as free:
            assert not free
        loop.come("urgent", priority=5)
        loop.moved()
        _quiet(lambda: loop.went == [])
        loop.empty = False
    loop.moved(empty=True)
    assert loop.all_went(1) == ["urgent"]


def test_suspects_do_not_pass_who_is_on_the_way_in() -> None:
    """An ordinary slice whose turn it is and that the loop has not got yet is as one that runs."""
    loop = Loop()
    with loop.line.turn(0, alone=False):
        loop.come("suspects", priority=5, alone=True)
        _quiet(lambda: loop.went == [])
        loop.empty = False
    loop.moved()
    _quiet(lambda: loop.went == [])
    loop.moved(empty=True)
    assert loop.all_went(1) == ["suspects"]
    assert not loop.line.open()
