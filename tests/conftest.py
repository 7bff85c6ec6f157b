"""Servers that suites share: one of each a test process, started when the first test asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.postgres import Postgres

pytest.register_assert_rewrite("tests.unit.lives", "tests.unit.hours")  # a life that fails says with what


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL in which every test makes databases of its own."""
    server = Postgres()
    yield server
    server.close()
