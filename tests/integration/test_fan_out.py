"""Many asked at once, their answers merged: end to end through real workers, whatever dies meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.tables import Batch, Body, Job
from tests.support.pool import TestPool, running, simulated
from tests.support.servers import Server

ROOT = Path(__file__).parents[2]
OVERVIEW = ("--each", r"Explain {path}:\n{content}", "--merge", r"Write one overview from these notes:\n{results}")

batches = Batch.__table__  # type: ignore[attr-defined]
bodies = Body.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A model server."""
    made = Server(slots=64)
    yield made
    made.close()


def config(server: Server) -> dict[str, Any]:
    """Classes with small contexts, so that files of some pages are cut and a few notes fill a merge."""
    made = simulated(server.url, in_flight=16)
    made["classes"]["small"]["options"] = {"num_ctx": 3000}
    made["classes"]["narrow"] = {
        "serve": [{"provider": "sim", "model": "gemma3:4b"}],
        "options": {"num_ctx": 1200},
    }
    made["categories"] = {
        "notes": {"class": "small", "audit": 0},
        "overview": {"class": "narrow", "max_tokens": 100, "audit": 0},
    }
    made["privacy"] = {"default": "cloud_ok", "roots": {"private": "local_only"}}
    return made


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[TestPool]:
    """A whole pool."""
    with running(tmp_path_factory.mktemp("fan-out"), config(server)) as made:
        made.up()
        yield made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command line runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_this_repository(pool: TestPool, folder: Path) -> None:
    shutil.copytree(ROOT / "tasks", folder / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    ran = pool.cli(
        "fan-out",
        "tasks/**/*.py",
        "--category",
        "notes",
        "--merge-category",
        "overview",
        *OVERVIEW,
        "-o",
        "overview.md",
    )
    print(ran.stderr, ran.text)
    assert ran.code == 0
    id_ = ran.stderr.split()[0]
    print(pool.cli("fan-out", "status", id_).text)
    print((folder / "overview.md").read_text())
