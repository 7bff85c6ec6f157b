"""The two helpers through a running pool: --pool, and --escalate to its cloud worker."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from tasks.ledger import reading
from tasks.tables import Batch
from tests.support.helpers import ANCHOR, LLM, Home
from tests.support.pool import TestPool, running, simulated
from tests.support.waiting import eventually
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

LINE = re.compile(r"\[offload\] model=(\S+) category=([a-z-]+) tokens=\d+ duration_ms=\d+ validated=(true|false)\n")
#: what the cloud worker answers with, so that its calls are told apart
CLOUD_MODEL = "gemma4:31b"

batches = Batch.__table__  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def simulator() -> Iterator[BackgroundSimulator]:
    """The module's model server."""
    with in_thread(SimulatorConfig(slots=64, loaded_limit=8)) as made:
        yield made


def config(url: str) -> dict[str, Any]:
    made = simulated(url)
    made["providers"].append({"name": "far", "kind": "openai", "url": f"{url}/v1", "reach": "cloud"})
    made["classes"]["cloud"] = {"serve": [{"provider": "far", "model": CLOUD_MODEL}]}
    made["categories"] = {"extract": {"attempts": 1}}
    return made


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, simulator: BackgroundSimulator) -> Iterator[TestPool]:
    """A running pool whose class `cloud` nobody serves yet."""
    with running(tmp_path_factory.mktemp("helpers"), config(simulator.url)) as made:
        made.up()
        yield made


@pytest.fixture
def home(pool: TestPool, tmp_path: Path) -> Home:
    """The pool's home, with a log of its own for each test."""
    made = Home(pool.home, in_here=True)
    made.environment |= pool.environment | {"OFFLOAD_LOG": str(tmp_path / "log")}
    return made


def enqueued(pool: TestPool) -> int:
    """How many batches there are, without the pool's own."""
    with pool.db.read() as c:
        return int(c.execute(select(func.count()).where(batches.c.kind == "jobs")).scalar_one())


def line(home: Home) -> str:
    """The last telemetry line."""
    return Path(home.environment["OFFLOAD_LOG"]).read_text().splitlines()[-1]


def test_the_pool_gives_what_the_straight_way_gives(home: Home, pool: TestPool) -> None:
    """--pool makes a job of each call; outputs and lines have the same form."""
    before = enqueued(pool)
    for arguments in (("summarize", "A note."), ("--json", "extract", "field 'a'"), ("embed", "A note.")):
        straight, through = home.llm(*arguments), home.llm(*arguments, "--pool")
        assert (straight.code, through.code) == (0, 0), through.stderr
        texts = [ran.json if arguments[0] != "summarize" else ran.text for ran in (straight, through)]
        assert texts[0] == pytest.approx(texts[1]) if arguments[0] == "embed" else texts[0] == texts[1]
        found = [LINE.fullmatch(ran.stderr) for ran in (straight, through)]
        assert [match and match.groups() for match in found] == [found[0] and found[0].groups()] * 2
        assert found[0]
    assert enqueued(pool) == before + 3
    assert home.llm("--health", "--pool").text == "healthy"


def test_exit_codes_through_the_pool(home: Home) -> None:
    """No JSON is 3 and 11, a failed job 1 and 12, an unknown category 2 and 12."""
    assert home.llm("--pool", "extract", "--json", "x [[sim:badjson]]").code == 3
    ran = home.anchor("--pool", "extract", "x [[sim:badjson]]", "--json")
    assert (ran.code, ran.stdout) == (11, b"")
    assert ran.stderr.endswith("ESCALATE: JSON validation failed\n")
    assert home.llm("--pool", "extract", "x [[sim:400]]").code == 1
    assert home.anchor("--pool", "extract", "x [[sim:400]]").code == 12
    assert "did you mean 'extract'?" in home.llm("--pool", "extrct", "x").stderr
    ran = home.llm("--pool", "My secret words", "x")
    assert ran.code == 2
    assert "secret" not in ran.stderr
    assert home.anchor("--pool", "extrct", "x").code == 12
    ran = home.anchor("--pool", "summarize", "A note.", "--touches", "a.py", "--for", "agent")
    assert ran.code == 0
    assert LINE.fullmatch(ran.stderr)
    assert '"decision":"offload","reason":"none"' in line(home)


def test_without_a_pool(simulator: BackgroundSimulator, tmp_path: Path) -> None:
    """--pool ends 1 and 13, --escalate as if it were not said; no ledger is made."""
    home = Home(tmp_path / "home", config(simulator.url))
    assert home.llm("--pool", "summarize", "x").code == 1
    assert home.llm("--pool", "--health").code == 1
    ran = home.anchor("--pool", "summarize", "x")
    assert ran.code == 13
    assert ran.stderr.endswith("ESCALATE: model server unhealthy\n")
    ran = home.anchor("code", "x", "--security", "--escalate")
    assert (ran.code, ran.stdout, ran.stderr) == (10, b"", "ESCALATE: marked as security work\n")
    assert not (home.path / "ledger.db").exists()


def test_without_a_cloud_worker_nothing_is_enqueued(home: Home, pool: TestPool) -> None:
    """A configured cloud that no worker serves is as none: exit 10, and the ledger is as it was."""
    before = enqueued(pool)
    ran = home.anchor("code", "x", "--security", "--escalate")
    assert (ran.code, ran.stdout, ran.stderr) == (10, b"", "ESCALATE: marked as security work\n")
    assert enqueued(pool) == before


def test_escalate_gets_the_clouds_answer(home: Home, pool: TestPool, simulator: BackgroundSimulator) -> None:
    """With a cloud worker --escalate prints its answer and ends 0; without it nothing is enqueued even then."""
    pool.worker("far")
    before = enqueued(pool)
    disqualified = ("code", "implement auth", "--touches", "src/auth/jwt.rs")
    assert home.anchor(*disqualified).code == 10
    assert enqueued(pool) == before
    ran = home.anchor(*disqualified, "--escalate")
    assert (ran.code, ran.stderr) == (0, "ESCALATE: security path\n")
    assert "simulated" in ran.text
    assert simulator.calls()[-1]["model"] == CLOUD_MODEL
    assert '"decision":"escalate","reason":"security path"' in line(home)
    assert line(home).endswith('"exit_code":0,"pool":true}'), "its call is in the ledger: rollups leave this line out"
    assert home.anchor("classify", "x", "--escalate").stderr.startswith("[offload] model=gemma3:4b")


def test_privacy_forbids_the_cloud(home: Home, pool: TestPool, simulator: BackgroundSimulator) -> None:
    """A path that holds secrets is escalated to nobody: exit 10 as without --escalate, and nothing is sent."""
    if not any(worker.provider == "far" for worker in reading.all_workers(pool.db)):
        pool.worker("far")
    before = simulator.stats()["requests"]
    ran = home.anchor("code", "x", "--touches", "prod.env", "--escalate")
    assert (ran.code, ran.stdout) == (10, b"")
    assert ran.stderr.startswith("ESCALATE: security path\n")
    assert "refused" in ran.stderr
    assert simulator.stats()["requests"] == before


@pytest.mark.parametrize("command", [LLM, ANCHOR], ids=["llm-offload", "anchor-offload"])
def test_ctrl_c_leaves_the_job(home: Home, pool: TestPool, simulator: BackgroundSimulator, command: str) -> None:
    """Exit 130; the job goes on, and the message says how to come back to it."""
    process = home.start(command, "--pool", "summarize", "x [[sim:delay=600]]")
    eventually(lambda: simulator.stats()["in_flight"] == 1, "the job is in flight")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, b"")
    batch = re.search(r"offload wait (batch_\w+)", err.decode())
    assert batch
    assert "ESCALATE" not in err.decode()
    assert pool.batch(batch[1]).open == 1
    assert pool.cli("cancel", batch[1]).code == 0
    eventually(lambda: simulator.stats()["in_flight"] == 0, "the call is closed")
