"""I6: an hour's rollups are the sum of its calls, whatever came when and whoever summed it how often: all histories."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from tests.support.postgres import Postgres
from tests.unit.databases import UNIT, ClockedDatabase
from tests.unit.hours import live


def test_i6_in_a_file(tmp_path: Path) -> None:
    """After every run each hour is the sum of its calls, and after a prune it stays what it was."""
    with closing(ClockedDatabase(tmp_path / "ledger.db")) as db:
        live(db)


def test_i6_in_postgresql(postgres: Postgres) -> None:
    """The same."""
    with closing(ClockedDatabase(postgres.create(UNIT))) as db:
        live(db)
    postgres.drop(UNIT)
