"""What is about the ledger itself holds on both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.ledgers import Ledger


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """A ledger in a file, and one in PostgreSQL."""
    made = Ledger(request.getfixturevalue(f"{request.param}_db"))
    yield made
    made.check()
