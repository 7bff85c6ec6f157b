"""A ledger of its own for each test; what must always hold is checked when the test is over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.postgres import Postgres
from tests.unit.databases import UNIT, ClockedDatabase
from tests.unit.ledgers import Ledger

#: of a property; `make acceptance` tries as many as Hypothesis does by itself
settings.register_profile("quick", max_examples=30)


@pytest.fixture(scope="session")
def sqlite_db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClockedDatabase]:
    """A file that tests have one after another."""
    db = ClockedDatabase(tmp_path_factory.mktemp("ledger") / "ledger.db")
    yield db
    db.close()


@pytest.fixture(scope="session")
def postgres_db(postgres: Postgres) -> Iterator[ClockedDatabase]:
    """A PostgreSQL database that tests have one after another."""
    db = ClockedDatabase(postgres.create(UNIT))
    yield db
    db.close()


@pytest.fixture
def ledger(sqlite_db: ClockedDatabase) -> Iterator[Ledger]:
    """A ledger in a file."""
    made = Ledger(sqlite_db)
    yield made
    made.check()
