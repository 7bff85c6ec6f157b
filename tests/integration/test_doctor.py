"""doctor: each thing it checks is broken once, and it says so, with the command that mends it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.ledger import claims, nodes, ticks
from tasks.ledger.claims import Identity
from tests.support.api import Api
from tests.support.cli import offload
from tests.support.pool import Redis, TestPool, running, simulated
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

KEY = "sk-right"
CLASSES = ["small", "coder", "reason", "embed"]


@pytest.fixture(scope="module")
def simulator() -> Iterator[BackgroundSimulator]:
    """A model server that asks for a key."""
    with in_thread(SimulatorConfig(api_key=KEY)) as made:
        yield made


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis for all tests here; doctor only looks at it."""
    made = Redis(tmp_path_factory.mktemp("redis"))
    yield made
    made.close()


@pytest.fixture
def pool(tmp_path: Path, simulator: BackgroundSimulator, redis: Redis) -> Iterator[TestPool]:
    """A whole pool as the ledger shows it: a worker and beat have just reported, though no process runs."""
    with running(tmp_path, config(simulator), redis=redis, hurry=1) as made:
        made.environment["SIM_KEY"] = KEY
        report(made)
        ticks.tick(made.db, "sweep", {})
        yield made


def config(simulator: BackgroundSimulator) -> dict[str, Any]:
    return simulated(simulator.url, api_key_env="SIM_KEY")


def write_config(pool: TestPool, made: dict[str, Any]) -> None:
    (pool.home / "offload.yaml").write_text(yaml.safe_dump(made))


def report(pool: TestPool, classes: list[str] = CLASSES, health: str = "healthy", detail: str = "") -> None:
    """What a worker of provider `sim` writes at each heartbeat."""
    me = Identity("here", "sim", "run", os.getpid())
    claims.register(pool.db, me, classes, 8)
    claims.report(pool.db, me, in_flight=0, serving=classes, consuming=True, health=health, detail=detail)


def assert_broken(pool: TestPool, check: str, detail: str, fix: str) -> None:
    """doctor ends with 1, names this check as broken with the fix, and says the same as JSON; no key is shown."""
    ran = pool.cli("doctor")
    assert ran.code == 1, ran.text
    lines = ran.text.splitlines()
    found = [i for i, text in enumerate(lines) if text.startswith(f"BROKEN  {check}: ") and detail in text]
    assert found, ran.text
    after = "\n".join(lines[found[0] : found[0] + 4])
    assert fix in after, after
    assert "broken" in ran.stderr
    assert KEY not in ran.text
    findings = pool.cli("doctor", "--json").json
    broken = [f for f in findings if f["check"] == check and not f["ok"]]
    assert any(detail in f["detail"] and fix in f["fix"] for f in broken)
    assert all(f["fix"] for f in findings if not f["ok"]), "each broken thing has its fix"


def test_nothing_is_broken_in_a_whole_pool(pool: TestPool) -> None:
    """A whole pool is exit 0, with each thing looked at on a line of its own."""
    ran = pool.cli("doctor")
    assert ran.code == 0, ran.text
    assert ran.stderr == ""
    checks = [line.removeprefix("ok      ").split(":")[0] for line in ran.text.splitlines()]
    assert checks == [
        "configuration", "redis", "ledger", "provider sim", *(f"class {c}" for c in CLASSES), "class cloud",
        "worker sim", "beat",
    ]  # fmt: skip


def test_redis_down(pool: TestPool) -> None:
    """A Redis that does not answer is named, without its password."""
    pool.environment["OFFLOAD_REDIS_URL"] = "redis://:hunter2@127.0.0.1:9/0"
    assert_broken(pool, "redis", "does not answer", "OFFLOAD_REDIS_URL")
    assert "hunter2" not in pool.cli("doctor").text


def test_redis_unknown(pool: TestPool) -> None:
    """Without a pool and without a Redis of one's own the fix is to start the pool."""
    del pool.environment["OFFLOAD_REDIS_URL"]
    assert_broken(pool, "redis", "no pool runs here", "offload up")


def test_redis_refuses_the_password(pool: TestPool) -> None:
    """A wrong password is named as such."""
    port = pool.redis.url.rpartition(":")[2]
    pool.environment["OFFLOAD_REDIS_URL"] = f"redis://:wrong@127.0.0.1:{port}"
    assert_broken(pool, "redis", "Authentication", "OFFLOAD_REDIS_URL")


def test_redis_that_evicts(pool: TestPool) -> None:
    """A maxmemory policy that evicts queues is broken though everything works today."""
    pool.redis.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert_broken(pool, "redis", "allkeys-lru", "config set maxmemory-policy noeviction")
    finally:
        pool.redis.client.config_set("maxmemory-policy", "noeviction")


def test_ledger_corrupt(pool: TestPool) -> None:
    """A file that is no ledger."""
    path = pool.home / "other.db"
    path.write_bytes(b"no database at all " * 500)
    pool.environment["OFFLOAD_DATABASE_URL"] = f"sqlite:///{path}"
    assert_broken(pool, "ledger", "other.db", "restore the file")


def test_ledger_out_of_reach(pool: TestPool) -> None:
    """A ledger whose folder cannot be made."""
    (pool.home / "file").touch()
    pool.environment["OFFLOAD_DATABASE_URL"] = f"sqlite:///{pool.home}/file/ledger.db"
    assert_broken(pool, "ledger", "cannot be opened", "OFFLOAD_DATABASE_URL")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes whatever the mode says")
def test_ledger_read_only(pool: TestPool) -> None:
    """A ledger that may be read and not written."""
    pool.db.close()
    (pool.home / "ledger.db").chmod(0o400)
    pool.home.chmod(0o500)
    try:
        assert_broken(pool, "ledger", "readonly", "make the folder writable")
    finally:
        pool.home.chmod(0o700)


def test_ledger_read_only_by_its_address(pool: TestPool) -> None:
    """A ledger opened read-only, as one on a read-only disk is, for root too."""
    path = pool.home / "ledger.db"
    pool.environment["OFFLOAD_DATABASE_URL"] = f"sqlite:///file:{path}?mode=ro&uri=true"
    assert_broken(pool, "ledger", "readonly", "writable")


def test_configuration_bad(pool: TestPool) -> None:
    """A fault of offload.yaml is shown with file and line."""
    (pool.home / "offload.yaml").write_text("providers: []\nclases: {}\n")
    assert_broken(pool, "configuration", "offload.yaml:2: clases: unknown key", "offload config check")
    assert pool.cli("config", "check").code == 2


def test_variable_unknown(pool: TestPool) -> None:
    """An OFFLOAD_ variable that means nothing is a typing error."""
    pool.environment["OFFLOAD_REDIS_ULR"] = "redis://elsewhere"
    assert_broken(pool, "environment", "OFFLOAD_REDIS_ULR", "unset OFFLOAD_REDIS_ULR")


def test_provider_away(pool: TestPool, simulator: BackgroundSimulator) -> None:
    """A provider that nobody answers for, and the classes that it alone serves."""
    made = config(simulator)
    made["providers"][0]["url"] = "http://127.0.0.1:9"
    write_config(pool, made)
    assert_broken(pool, "provider sim", "nobody answers at http://127.0.0.1:9", "providers.sim.url")
    assert_broken(pool, "class small", "the provider is away", "start provider sim")


def test_key_wrong(pool: TestPool) -> None:
    """A key that the provider refuses."""
    pool.environment["SIM_KEY"] = "sk-wrong"
    assert_broken(pool, "provider sim", "", "api_key_env")
    assert "sk-wrong" not in pool.cli("doctor").text


def test_key_unset(pool: TestPool) -> None:
    """A key whose variable is not set."""
    del pool.environment["SIM_KEY"]
    assert_broken(pool, "provider sim", "SIM_KEY is not set", "export SIM_KEY=")


def test_model_missing(pool: TestPool, simulator: BackgroundSimulator) -> None:
    """A model that the provider does not have, with the command that brings it."""
    made = config(simulator)
    made["classes"]["small"] = {"serve": [{"provider": "sim", "model": "gemma9:4b"}]}
    write_config(pool, made)
    assert_broken(pool, "class small", "gemma9:4b on sim: the provider does not have it", "ollama pull gemma9:4b")


def test_class_without_provider(pool: TestPool, simulator: BackgroundSimulator) -> None:
    """A class that nothing serves."""
    made = config(simulator)
    made["classes"]["legal"] = {"serve": []}
    write_config(pool, made)
    assert_broken(pool, "class legal", "nothing serves it", "classes.legal.serve")


def test_gguf_file_missing(pool: TestPool, simulator: BackgroundSimulator) -> None:
    """A provider whose model file is not there."""
    made = config(simulator)
    made["providers"].append({"name": "file", "kind": "gguf", "path": "/nowhere/model.gguf"})
    write_config(pool, made)
    assert_broken(pool, "provider file", "/nowhere/model.gguf", "providers.file.path")


def test_no_worker(pool: TestPool) -> None:
    """A provider without a live worker."""
    with pool.db.write() as c:
        c.exec_driver_sql("UPDATE workers SET last_seen = last_seen - 3600")
    assert_broken(pool, "worker sim", "no live worker", "offload worker --provider sim")


def test_worker_in_trouble(pool: TestPool) -> None:
    """A worker that lives and takes nothing, with what it says itself."""
    report(pool, health="offline", detail="refused")
    assert_broken(pool, "worker sim", "here/sim: 0 of 8 in flight, offline", "see provider sim: refused")


def test_class_left_out_by_every_worker(pool: TestPool) -> None:
    """A class that every live worker was told not to serve."""
    report(pool, classes=["small", "coder", "embed"])
    assert_broken(pool, "class reason", "no live worker serves it", "offload worker --provider sim --serves reason")


@pytest.mark.parametrize("sql", ["DELETE FROM ticks", "UPDATE ticks SET at = at - 3600"], ids=["never", "late"])
def test_no_beat(sql: str, pool: TestPool) -> None:
    """A beat that never ticked, or not for long."""
    with pool.db.write() as c:
        c.exec_driver_sql(sql)
    assert_broken(pool, "beat", "tick", "offload beat")


def test_the_api_where_the_pool_says_it_is(pool: TestPool) -> None:
    """The API that was started with the pool is named with its address, and missed once nobody answers there."""
    api = Api(pool)
    (pool.home / "run" / "pool.json").write_text(json.dumps({"api": api.url}))
    assert f"ok      api: answers at {api.url}/v1" in pool.cli("doctor").text
    api.kill()
    assert_broken(pool, "api", api.url, "offload up")


def test_a_fresh_home_is_told_what_to_do(tmp_path: Path) -> None:
    """Where nothing was ever started, doctor breaks nothing and names the first command."""
    ran = offload({"OFFLOAD_HOME": str(tmp_path / "new"), "PATH": os.environ["PATH"]}, "doctor")
    assert ran.code == 1
    assert "offload up" in ran.text
    assert "Traceback" not in ran.stderr


def test_only_drained_nodes(pool: TestPool) -> None:
    """A class that only drained nodes serve waits, and doctor names the way back."""
    me = Identity("here", "sim", "run", os.getpid())
    nodes.set_phase(pool.db, me, nodes.Phase.DRAINED, "its node is drained: offload resume here", 0)
    assert_broken(pool, "class small", "only drained nodes serve it (here)", "offload resume here")


def test_a_server_of_another_node(pool: TestPool, redis: Redis) -> None:
    """A provider that does not answer here may be well where its worker is."""
    write_config(pool, simulated("http://127.0.0.1:9"))
    assert_broken(pool, "provider sim", "nobody answers", "providers.sim.url")
    there = Identity("gpu1", "sim", "run", os.getpid())
    claims.register(pool.db, there, CLASSES, 8)
    claims.report(pool.db, there, in_flight=0, serving=CLASSES, consuming=True, health="healthy", detail="")
    ran = pool.cli("doctor")
    assert ran.code == 0, ran.text
    assert "ok      provider sim: well, by the word of gpu1/sim" in ran.text


def test_redis_takes_no_writes(pool: TestPool) -> None:
    """A Redis that answers and has no room for a message."""
    pool.redis.client.config_set("maxmemory", "1")
    try:
        assert_broken(pool, "redis", "out of memory and takes no messages", "redis-cli info memory")
    finally:
        pool.redis.client.config_set("maxmemory", "0")


def test_deep_names_what_does_not_agree_and_fix_mends_it(pool: TestPool) -> None:
    """A counter that is wrong is exit 1 with the command that mends it; what was mended is fine."""
    batch = pool.submit([{"category": "summarize", "prompt": "x"}])
    assert pool.cli("doctor", "--deep").code == 0
    with pool.db.write() as c:
        c.exec_driver_sql("UPDATE batches SET done = 5")
    assert pool.cli("doctor").code == 0, "only a deep look finds it"
    ran = pool.cli("doctor", "--deep")
    assert ran.code == 1
    assert f"BROKEN  ledger, counters of batches: {batch}: done says 5, there are 0" in ran.text
    assert "fix: offload doctor --deep --fix" in ran.text
    assert pool.cli("doctor", "--deep", "--fix").code == 0
    assert pool.batch(batch).done == 0
    assert pool.cli("doctor", "--fix").code == 2
