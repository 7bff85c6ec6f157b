"""Servers that suites share: one of each a test process, started when the first test asks for it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from api.embedded import redis_server
from tests.support.ports import free_port
from tests.support.postgres import Postgres

pytest.register_assert_rewrite("tests.unit.lives", "tests.unit.hours")  # a life that fails says with what
redis_server.free_port = free_port  # for the Redis of a test's pool; what is a program of its own chooses by itself


def pytest_collection_finish() -> None:
    """What is imported and collected lives to the end: the collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL in which every test makes databases of its own."""
    server = Postgres()
    yield server
    server.close()
