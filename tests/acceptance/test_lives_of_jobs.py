"""Whatever happens in whatever order, the promises of the ledger hold after every step: all the lives."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from tests.support.postgres import Postgres
from tests.unit.databases import UNIT, ClockedDatabase
from tests.unit.lives import live


def test_lives_in_a_file(tmp_path: Path) -> None:
    """I1 to I5 after every step, and at the end every job that was promised has ended once."""
    with closing(ClockedDatabase(tmp_path / "ledger.db")) as db:
        live(db)


def test_lives_in_postgresql(postgres: Postgres) -> None:
    """The same."""
    with closing(ClockedDatabase(postgres.create(UNIT))) as db:
        live(db)
    postgres.drop(UNIT)
