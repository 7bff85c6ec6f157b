"""Whatever happens in whatever order: a few lives; the acceptance suite leads the others."""

from __future__ import annotations

import pytest

from tests.unit.databases import ClockedDatabase
from tests.unit.lives import QUICK, live


@pytest.mark.slow
def test_lives_in_a_file(sqlite_db: ClockedDatabase) -> None:
    """I1 to I5 after every step, and at the end every job that was promised has ended once."""
    live(sqlite_db, QUICK)


@pytest.mark.slow
def test_lives_in_postgresql(postgres_db: ClockedDatabase) -> None:
    """The same."""
    live(postgres_db, QUICK)
