"""`offload healthy`: what containers ask."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from api.use_cases.pool import Pool
from tasks.ledger import claims, ticks
from tasks.ledger.claims import Identity
from tasks.privacy import Reach
from tasks.settings import Settings
from tasks.tables import Tick, Worker
from tests.support.cli import Ran, offload
from tests.support.plain_server import plain_server
from tests.support.pool import clean_environment


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """A ledger in which the worker `here/ollama` and beat were seen just now."""
    made = Pool(Settings(home=tmp_path, node="here"))
    claims.register(made.db, Identity("here", "ollama", "run", 1), ["small"], 4, Reach.LOCAL)
    ticks.tick(made.db, "sweep", {})
    yield made
    made.db.close()


def healthy(pool: Pool, *arguments: str) -> Ran:
    given = {"OFFLOAD_HOME": str(pool.settings.home), "OFFLOAD_NODE": "here"}
    return offload(clean_environment() | given, "healthy", *arguments)


def test_a_role_that_was_seen_is_well(pool: Pool) -> None:
    """Exit 0, and not a word."""
    for arguments in (("worker", "--provider", "ollama"), ("beat",)):
        done = healthy(pool, *arguments)
        assert (done.code, done.stdout, done.stderr) == (0, b"", "")


def test_a_role_that_is_silent_is_not(pool: Pool) -> None:
    """A minute without a sign is said, and is exit 1; so is a worker that nobody has seen, or of another node."""
    with pool.db.write() as c:
        c.execute(update(Worker).values(last_seen=Worker.last_seen - 60))
        c.execute(update(Tick).values(at=Tick.at - 60))
    for arguments, words in (
        (("worker", "--provider", "ollama"), r"here/ollama was last seen 6\d s ago, which is more than 45 s"),
        (("worker", "--provider", "vllm"), "here/vllm is not in the ledger"),
        (("worker", "--provider", "ollama", "--node", "gpu1"), "gpu1/ollama is not in the ledger"),
        (("beat",), r"beat last ticked 6\d s ago, which is more than 20 s"),
    ):
        done = healthy(pool, *arguments)
        assert done.code == 1
        assert re.fullmatch(words, done.stderr.strip())


def test_a_page_answers_or_does_not(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 is well; another status, nobody there, and no address at all are not; no proxy is asked."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with plain_server({"/healthz": {}, "/broken": 503}) as server:
        assert healthy(pool, "url", f"{server.url}/healthz").code == 0
        assert healthy(pool, "url", f"{server.url}/broken").stderr.strip().endswith("answers 503")
    gone = healthy(pool, "url", f"{server.url}/healthz")
    assert gone.code == 1
    assert "does not answer" in gone.stderr
    assert healthy(pool, "url", "no address").code == 1
