"""A ledger of its own for each test; what must always hold is checked when the test is over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.ledgers import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger in a file."""
    made = Ledger(tmp_path / "ledger.db")
    yield made
    made.check()
    made.close()
