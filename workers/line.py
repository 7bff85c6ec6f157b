"""Where claimed slices wait to be handed to the loop: higher priorities first, then first come, first served.

A slice of suspects, jobs in whose company workers died more than once, goes in alone: it waits until the loop is
empty, and nobody follows until it is empty again.  So a crash that they cause is counted against them only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count


class Line:
    """little_waits, empty: whether the loop has little to start next, or nothing; takes: whether it takes any."""

    def __init__(self, little_waits: Callable[[], bool], empty: Callable[[], bool], takes: Callable[[], bool]) -> None:
        self._little_waits = little_waits
        self._empty = empty
        self._takes = takes
        self._changed = threading.Condition()
        self._places: list[tuple[int, int]] = []
        self._order = count()
        self._alone = False  #: suspects are in the loop, or on their way into it
        self._going = 0  #: slices whose turn it is and that are not in the loop yet
        self._entering = 0  #: slices that may go in without a place in line

    def open(self) -> bool:
        """Whether a slice that comes now could go in at once."""
        return not self._places and not self._alone and self._little_waits()

    @contextmanager
    def entering(self) -> Iterator[bool]:
        """Whether a slice may go in beside others; while the block lasts nobody begins to run alone."""
        with self._changed:
            free = not self._alone
            self._entering += free
        try:
            yield free
        finally:
            with self._changed:
                self._entering -= free
                self._changed.notify_all()

    @contextmanager
    def turn(self, priority: int, *, alone: bool) -> Iterator[bool]:
        """Block until it is this slice's turn, or the worker stops taking: then False.

        The next in line goes on when the block is left, so that slices start in their order.
        """
        place = (-priority, next(self._order))
        with self._changed:
            self._places.append(place)
            while self._takes() and not self._may_go(place, alone):
                self._changed.wait(timeout=1.0)
            takes = self._takes()
            self._going += takes
            self._alone = self._alone or (alone and takes)
        try:
            yield takes
        finally:
            with self._changed:
                self._places.remove(place)
                self._going -= takes
                self._changed.notify_all()

    def _may_go(self, place: tuple[int, int], alone: bool) -> bool:
        if self._alone or place != min(self._places):
            return False
        return self._empty() and not (self._entering or self._going) if alone else self._little_waits()

    def moved(self) -> None:
        """The loop started or ended something."""
        if not self._alone and not self._places:
            return
        with self._changed:
            self._alone = self._alone and bool(self._going or not self._empty())
            self._changed.notify_all()
