"""A periodic service runs when it is told to, by itself when nobody tells it, and never twice at once."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from scheduler import service
from scheduler.service import LATE, Service
from tasks.errors import OtherTables
from tests.support.waiting import eventually

EVERY_S = 0.1


class Runs:
    """What a service does, and when it did so."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.blocked: threading.Event | None = None
        self.fails: Exception | None = None

    def __call__(self) -> Counter[str]:
        self.at.append(time.monotonic())
        if self.blocked is not None:
            self.blocked.wait(10)
        if self.fails:
            raise self.fails
        return Counter()


@pytest.fixture
def runs() -> Runs:
    """Nothing ran yet."""
    return Runs()


@pytest.fixture
def running(runs: Runs) -> Iterator[Service]:
    """A service with a thread of its own."""
    made = Service("sweep", runs, EVERY_S)
    made.start()
    yield made
    made.stop()


def test_without_ticks_it_runs_by_its_own_clock(running: Service, runs: Runs) -> None:
    """Redis is away, or beat's clock was set back: it runs all the same, less often."""
    eventually(lambda: len(runs.at) >= 3, "it runs", 10)
    assert all(b - a > LATE * EVERY_S for a, b in zip(runs.at, runs.at[1:], strict=False))


def test_it_never_runs_twice_at_once(runs: Runs) -> None:
    """A tick that comes during a run is dropped: the run looks at everything anyway."""
    runs.blocked = threading.Event()
    made = Service("sweep", runs, 10.0)
    first = threading.Thread(target=made.run_now)
    first.start()
    eventually(lambda: runs.at, "it runs")
    made.run_now()
    runs.blocked.set()
    first.join()
    assert len(runs.at) == 1
    made.run_now()
    assert len(runs.at) == 2


def test_what_goes_wrong_once_does_not_end_it(running: Service, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that is away, or a fault of ours: it is said, without its words, and the next run comes."""
    said: list[str] = []
    monkeypatch.setattr(service.log, "error", lambda what, error: said.append(error))
    runs.fails = ValueError("no")
    eventually(lambda: len(said) >= 2, "it runs again", 10)
    assert set(said) == {"ValueError"}


def test_beside_newer_tables_its_process_ends(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says why, and its supervisor starts what says the same; nothing sweeps tables that it does not know."""
    said: list[str] = []
    codes: list[int] = []
    monkeypatch.setattr(service.log, "critical", lambda what, error: said.append(error))
    monkeypatch.setattr(os, "_exit", codes.append)
    runs.fails = OtherTables("the ledger has newer tables")
    Service("sweep", runs, 10.0).run_now()
    assert (said, codes) == (["the ledger has newer tables"], [os.EX_SOFTWARE])
