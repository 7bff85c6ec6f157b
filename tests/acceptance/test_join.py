"""A GPU host joins a pool elsewhere by TLS: ops/compose.join.yaml on the one side, ops/compose.worker.yaml there."""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
import shutil
import ssl
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
import redis

from tests.support.cli import EXECUTABLE, jsonl, offload
from tests.support.compose import ROOT, Composed, Published, at_simulator, env_file, fresh_env, merged, new_env, read
from tests.support.needed import needed
from tests.support.pool import clean_environment
from tests.support.postgres import PostgresImage
from workers.simulator import SimulatorConfig, in_thread

OPS = ROOT / "ops"


def debians_postgres() -> Path:
    """A PostgreSQL that speaks TLS, which the wheel's does not; skips on a laptop without one, and fails in CI."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        needed("postgres", "Debian's postgresql")
    return found[-1].parent


@pytest.fixture
def join(tmp_path: Path) -> str:
    """The address that the head is reached at, with certificates for it in tmp_path/certs."""
    address = f"127.{secrets.randbelow(10) + 240}.{secrets.randbelow(250)}.2"
    environment = {"PATH": os.environ["PATH"], "OFFLOAD_CERTS": str(tmp_path / "certs")}
    needed("openssl", "Debian's openssl")
    subprocess.run(["sh", str(OPS / "new-certs.sh"), address], env=environment, check=True, capture_output=True)
    return address


@pytest.fixture
def head(tmp_path: Path, join: str) -> Iterator[Composed]:
    """The pool without a worker: Redis and PostgreSQL, by TLS at `join` only, and beat."""
    environment = fresh_env(COMPOSE_PROFILES="cli", OFFLOAD_JOIN_ADDRESS=join)
    paths = [ROOT / "compose.yaml", OPS / "compose.join.yaml"]
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="offload-head-"))  # where `nobody`, who runs PostgreSQL, finds it
        folder.chmod(0o755)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        made = Composed(folder, paths, environment, {OPS / "certs": tmp_path / "certs"})
        stack.callback(made.close)
        # Debian's Redis is 7.0, which has no CLIENT SETINFO and so no rule for it
        made.edits["users.acl"] = lambda text: text.replace(" +client|setinfo", "")
        postgres = made.services["postgres"]["environment"]
        user, password = postgres["POSTGRES_USER"], postgres["POSTGRES_PASSWORD"]
        image = PostgresImage(user, password, postgres["POSTGRES_DB"], debians_postgres())
        stack.callback(image.close)
        made.program("offload", EXECUTABLE)
        made.program("valkey-server", needed("redis-server", "Debian's redis-server, which speaks TLS"))
        made.program("valkey-cli", needed("redis-cli", "Debian's redis-tools"))
        for name in ("postgres", "pg_isready"):
            made.program(name, str(image.binaries / name))
        entry = made.programs / "docker-entrypoint.sh"  # which by now has nothing to do but to start the server
        entry.write_text('#!/bin/sh\nexec "$@"\n')
        entry.chmod(0o755)
        at = ["-h", made.host("postgres")]
        made.container("postgres", more=[*image.arguments, *at], cwd="/", **image.options)
        made.container("redis", more=["--bind", made.host("redis")])
        for name in ("redis", "postgres", "migrate", "beat"):
            made.start(name)
        ports = Published(made.running[name] for name in ("redis", "postgres"))
        stack.callback(ports.close)
        yield made


def test_a_gpu_host_runs_the_heads_jobs(head: Composed, join: str, tmp_path: Path) -> None:
    """A worker that knows two addresses and a CA takes the batch to its end; the head's own ports stay shut."""
    with in_thread(SimulatorConfig(slots=16, loaded_limit=8)) as simulator:
        environment = {
            "OFFLOAD_HEAD": join,
            "OFFLOAD_NODE": "gpu1",
            "REDIS_NODE_PASSWORD": head.running["redis"].environment["REDIS_NODE_PASSWORD"],
            "POSTGRES_PASSWORD": head.services["postgres"]["environment"]["POSTGRES_PASSWORD"],
        }
        far = Composed(
            tmp_path / "far", [OPS / "compose.worker.yaml"], environment, {OPS / "certs": tmp_path / "certs"}
        )
        far.edits["offload-local.yaml"] = lambda text: at_simulator(text, simulator.url)
        far.at("worker", "127.0.0.1")
        far.program("offload", EXECUTABLE)
        try:
            worker = far.start("worker")
            worker.wait_until("service_healthy")
            file = tmp_path / "jobs.jsonl"
            file.write_bytes(jsonl({"category": "summarize", "prompt": f"job {i}"} for i in range(40)))
            cli = clean_environment() | head.container("cli").environment
            done = offload(cli, "submit", str(file), "--wait", "--timeout", "120")
            assert done.code == 0, done.stderr + worker.words()
            assert b'"gpu1"' in offload(cli, "stats", "--since", "1h", "--by", "node", "--json").stdout
            assert worker.stop() == 0
        finally:
            far.close()


def test_strangers_stay_out(head: Composed, join: str, tmp_path: Path) -> None:
    """Without TLS, with another CA, under another name, as another role: nobody comes in by the joined address."""
    password = head.running["redis"].environment["REDIS_NODE_PASSWORD"]
    ca = str(tmp_path / "certs" / "ca.crt")
    plain = redis.Redis.from_url(f"redis://node:{password}@{join}:6380/0", socket_timeout=5)
    with pytest.raises(redis.ConnectionError):
        plain.ping()
    with pytest.raises(redis.ConnectionError, match=r"(?i)certificate"):
        redis.Redis.from_url(f"rediss://node:{password}@{join}:6380/0").ping()
    with pytest.raises(redis.ConnectionError):
        redis.Redis.from_url(f"redis://node:{password}@{join}:6379/0").ping()
    node = redis.Redis.from_url(f"rediss://node:{password}@{join}:6380/0?ssl_ca_certs={ca}")
    assert node.ping()
    with pytest.raises(redis.exceptions.NoPermissionError):
        node.flushall()
    node.close()
    secret = head.services["postgres"]["environment"]["POSTGRES_PASSWORD"]
    at = f"postgresql://offload:{secret}@{join}:5432/offload"
    with pytest.raises(psycopg.OperationalError, match="certificate"):
        psycopg.connect(f"{at}?sslmode=verify-full&sslrootcert={other_ca(tmp_path)}")
    with psycopg.connect(f"{at}?sslmode=verify-full&sslrootcert={ca}") as c:
        assert c.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone() == (True,)


def other_ca(folder: Path) -> Path:
    """A CA that the head's certificate is not of."""
    environment = {"PATH": os.environ["PATH"], "OFFLOAD_CERTS": str(folder / "others")}
    subprocess.run(["sh", str(OPS / "new-certs.sh"), "127.0.0.1"], env=environment, check=True, capture_output=True)
    ssl.create_default_context(cafile=folder / "others" / "ca.crt")
    return folder / "others" / "ca.crt"


def documented() -> list[list[str]]:
    """What ops/docs/operations.md lets a person do, without Docker: on the head, and on the GPU host."""
    section = (OPS / "docs" / "operations.md").read_text().partition("**A GPU host joins.**")[2]
    blocks = [re.findall(r"^    (\S.*)$", part, re.MULTILINE) for part in section.split("\n\n")]
    head_and_host = list(filter(None, blocks))[:2]
    return [[line for line in lines if not line.startswith(("docker", "sh "))] for lines in head_and_host]


def test_a_head_stays_joined(tmp_path: Path) -> None:
    """What is done once is in .env, from where every later `docker compose` has both files and the address."""
    new_env(tmp_path)
    for line in documented()[0]:
        subprocess.run(["sh", "-ec", line], cwd=tmp_path, check=True)
    environment = env_file((tmp_path / ".env").read_text())
    paths = [ROOT / name for name in environment["COMPOSE_FILE"].split(":")]
    services = functools.reduce(merged, (read(path, environment) for path in paths))["services"]
    for name, port in (("redis", 6380), ("postgres", 5432)):
        assert services[name]["ports"] == [f"{environment['OFFLOAD_JOIN_ADDRESS']}:{port}:{port}"]
    pages = [*(OPS / "docs").rglob("*.md"), ROOT / "README.md", *OPS.glob("compose*.yaml")]
    assert [page.name for page in pages if re.search(r"-f \S*compose\.join\.yaml", page.read_text())] == []


def test_a_gpu_host_is_made_ready_in_a_fresh_clone(tmp_path: Path) -> None:
    """The worker's user can read the CA, passwords are their owner's alone; where no CA is nothing is made of it."""
    for name in ("ops", "FROM_THE_HEAD"):
        (tmp_path / name).mkdir()
    (tmp_path / "FROM_THE_HEAD" / "ca.crt").touch(0o600)
    shutil.copy(OPS / "worker.env.example", tmp_path / "ops")
    for line in documented()[1]:
        subprocess.run(["sh", "-ec", f"umask 022; {line}"], cwd=tmp_path, check=True)
    assert stat.S_IMODE((tmp_path / "ops" / "certs" / "ca.crt").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "ops" / ".env").stat().st_mode) == 0o600
    given = {"REDIS_NODE_PASSWORD": "x", "POSTGRES_PASSWORD": "x", "OFFLOAD_HEAD": "head", "OFFLOAD_NODE": "gpu1"}
    volumes = read(OPS / "compose.worker.yaml", given)["services"]["worker"]["volumes"]
    (ca,) = [one for one in volumes if "ca.crt" in json.dumps(one)]
    assert ca["bind"] == {"create_host_path": False}
