"""A simulator and a pool on it: for each test, or whole and shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pool import TestPool, running, simulated
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread


@pytest.fixture
def simulator() -> Iterator[BackgroundSimulator]:
    """A model server without a model."""
    with in_thread(SimulatorConfig(slots=64, loaded_limit=8)) as running_simulator:
        yield running_simulator


@pytest.fixture
def pool(tmp_path: Path, simulator: BackgroundSimulator) -> Iterator[TestPool]:
    """A pool whose provider `sim` is the simulator; no role runs yet."""
    with running(tmp_path, simulated(simulator.url)) as made:
        yield made
