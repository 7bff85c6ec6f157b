"""Waits are predicates, never sleeps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(predicate: Callable[[], T], what: str, within_s: float = 30.0, every_s: float = 0.02) -> T:
    """The predicate's first true value; fails with `what` when there is none in time."""
    until = time.monotonic() + within_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(every_s)
