"""A GGUF file alone is a whole pool: llama.cpp's own server runs it, under the worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gguf import tiny_model
from tests.support.pool import TestPool, running
from tests.support.processes import playing
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestPool]:
    """A pool that is configured by a file's path and nothing else."""
    folder = tmp_path_factory.mktemp("gguf")
    config = {"providers": [{"kind": "gguf", "path": str(tiny_model(folder)), "slots": 2, "context": 1024}]}
    with running(folder, config) as made:
        made.up(provider="tiny")
        yield made


def jobs(n: int) -> list[dict[str, Any]]:
    return [{"id": f"j{i}", "category": "chat", "prompt": f"Say {i}.", "max_tokens": 400} for i in range(n)]


def test_chat_json_and_embeddings_are_done_by_llama_cpp(pool: TestPool, tmp_path: Path) -> None:
    """Every class is served by the file: text, JSON of a schema, and vectors, named after what served them."""
    results = {
        r["id"]: r
        for r in pool.finished(
            pool.submit(
                [
                    *jobs(3),
                    {"id": "schema", "category": "extract", "prompt": "Is it?", "schema": SCHEMA, "max_tokens": 400},
                    {"id": "vectors", "category": "embed", "input": ["One text.", "Another text."]},
                ]
            )
        )
    }
    assert {r["state"] for r in results.values()} == {"done"}, json.dumps(results)
    assert {(r["provider"], r["model"]) for r in results.values()} == {("tiny", "tiny")}
    assert isinstance(results["schema"]["output"]["ok"], bool)
    one, two = results["vectors"]["output"]
    assert len(one) == len(two) > 0
    assert one != two
    assert all(r["tokens"]["in"] > 0 for r in results.values())
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    ran = pool.cli("run", "extract", "Is it?", "--schema", str(tmp_path / "schema.json"), "--timeout", "60")
    assert ran.code == 0, ran.stderr
    assert set(ran.json) == {"ok"}


def test_a_killed_llama_cpp_is_started_again(pool: TestPool) -> None:
    """kill -9 of the child in the middle of a batch: the worker starts another, and every job is done."""
    (child,) = playing(pool.home, "workers.backends.gguf_server")
    batch = pool.submit(jobs(12))
    eventually(lambda: pool.batch(batch).done > 0, "it works")
    child.kill()
    later = pool.submit(jobs(2))
    results = pool.finished(batch) + pool.finished(later)
    assert {r["state"] for r in results} == {"done"}, results
    (successor,) = playing(pool.home, "workers.backends.gguf_server")
    assert successor.pid != child.pid


def test_a_drained_node_holds_no_file(pool: TestPool) -> None:
    """drain ends llama.cpp's child, and nothing starts it again before resume does."""
    pool.finished(pool.submit(jobs(2)))
    drained = pool.cli("drain", "here", "--timeout", "60")
    assert drained.code == 0, drained.stderr
    assert playing(pool.home, "workers.backends.gguf_server") == []
    batch = pool.submit(jobs(2))
    assert pool.cli("resume", "here").code == 0
    assert {r["state"] for r in pool.finished(batch)} == {"done"}
