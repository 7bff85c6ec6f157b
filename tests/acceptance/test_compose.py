"""compose.yaml: what it says is true, and its commands run a batch to its end, each as a process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from api.embedded.redis_server import find_binary
from api.embedded.supervisor import STOP_GRACE_S
from tasks.config import parse
from tasks.ledger import api_batches, schema
from tasks.settings import Times
from tests.support.cli import EXECUTABLE, jsonl, offload
from tests.support.compose import ROOT, Composed, Refused, at_simulator, env_file, fresh_env, new_env, read, seconds
from tests.support.needed import needed
from tests.support.pool import clean_environment
from tests.support.postgres import PostgresImage
from tests.unit.databases import opened
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

#: the files that are read together
FILES = (("compose.yaml",), ("compose.yaml", "ops/compose.join.yaml"), ("ops/compose.worker.yaml",))


@pytest.fixture
def simulator() -> Iterator[BackgroundSimulator]:
    """A model server, and a cloud."""
    with in_thread(SimulatorConfig(slots=64, loaded_limit=8)) as made:
        yield made


@pytest.fixture
def composed(tmp_path: Path, simulator: BackgroundSimulator) -> Iterator[Composed]:
    """The services with the cloud worker; the simulator answers in the place of Ollama and of Anthropic."""
    environment = fresh_env(
        COMPOSE_PROFILES="cloud,cli,monitoring",
        OFFLOAD_CONFIG_FILE="./ops/compose/offload-cloud.yaml",
        ANTHROPIC_API_KEY="a-key-of-the-test",
        OFFLOAD_DRAIN_S="5",
    )
    made = Composed(tmp_path, [ROOT / "compose.yaml"], environment)
    made.edits["offload-cloud.yaml"] = made.edits["offload.yaml"] = lambda text: at_simulator(text, simulator.url)
    made.program("offload", EXECUTABLE)
    made.program("valkey-server", find_binary())
    made.program("valkey-cli", needed("redis-cli", "Debian's redis-tools"))
    yield made
    made.close()


@pytest.fixture
def database(composed: Composed) -> Iterator[PostgresImage]:
    """What PostgreSQL's image would have made."""
    environment = composed.services["postgres"]["environment"]
    image = PostgresImage(*(environment[f"POSTGRES_{name}"] for name in ("USER", "PASSWORD", "DB")))
    for name in ("postgres", "pg_isready"):
        composed.program(name, str(image.binaries / name))
    yield image
    image.close()


def test_the_services_run_a_batch_and_stop_in_time(composed: Composed, database: PostgresImage, tmp_path: Path) -> None:
    """By depends_on and their own health checks all start, a batch ends, and all stop inside their grace."""
    composed.program("wget", needed("wget", "Debian's wget"))
    composed.container("prometheus", entry=[needed("prometheus", "Debian's prometheus")])
    composed.container("redis", more=["--bind", composed.host("redis")])
    at = ["-h", composed.host("postgres")]
    composed.container("postgres", more=[*database.arguments, *at], cwd="/", **database.options)
    for name in ("redis", "postgres", "migrate", "worker", "cloud-worker", "beat", "api", "flower", "metrics"):
        composed.start(name)
    for name in ("worker", "cloud-worker", "beat", "api", "flower", "metrics"):
        composed.running[name].wait_until("service_healthy")
    file = tmp_path / "jobs.jsonl"
    lines = [{"category": ("summarize", "code", "classify")[i % 3], "prompt": f"job {i}"} for i in range(60)]
    lines.append({"category": "merge", "prompt": "for the cloud", "privacy": "cloud_ok"})
    file.write_bytes(jsonl(lines))
    cli = composed.container("cli").environment | {"PATH": os.environ["PATH"]}
    out = tmp_path / "results.jsonl"
    done = offload(clean_environment() | cli, "submit", str(file), "--wait", "--timeout", "120", "-o", str(out))
    assert done.code == 0, done.stderr + composed.running["worker"].words() + composed.running["cloud-worker"].words()
    states = [json.loads(line)["state"] for line in out.read_bytes().splitlines()]
    assert sorted(states) == ["done"] * 60 + ["escalated"]
    composed.start("prometheus").wait_until("service_healthy")
    assert refused(composed) == []
    ended = composed.stop()
    assert {name: code for name, (code, _) in ended.items()} == dict.fromkeys(ended, 0), ended
    assert set(ended) == {
        "redis",
        "postgres",
        "worker",
        "cloud-worker",
        "beat",
        "api",
        "flower",
        "metrics",
        "prometheus",
    }


def documented() -> tuple[list[str], list[str]]:
    """What ops/docs/operations.md lets containers run to back up, and to restore."""
    section = (ROOT / "ops" / "docs" / "operations.md").read_text().partition("## Back up")[2].partition("\n## ")[0]
    blocks = [re.findall(r"^    (docker compose .*)$", part, re.MULTILINE) for part in section.split("\n\n")]
    backup, restore = filter(None, blocks)
    return backup, [line for line in restore if line.split()[2] in ("exec", "run")]


def test_what_the_docs_back_up_comes_back(composed: Composed, database: PostgresImage, tmp_path: Path) -> None:
    """The ledger and an uploaded file are what they were, over a ledger that went on, and `migrate` upgrades it."""
    at = ["-h", composed.host("postgres")]
    postgres = composed.container("postgres", more=[*database.arguments, *at], cwd="/", **database.options)
    # an image trusts who comes by its own socket; there is none here
    own = {"PGHOST": composed.host("postgres"), "PGPASSWORD": postgres.environment["POSTGRES_PASSWORD"]}
    for name in ("pg_dump", "pg_restore", "dropdb", "createdb"):
        composed.program(name, str(database.binaries / name))
    composed.start("postgres").wait_until("service_healthy")
    place = composed.container("migrate").environment["OFFLOAD_DATABASE_URL"]
    uploaded = tmp_path / "volumes" / "api" / "files" / "file-1"
    composed.container("api")
    uploaded.parent.mkdir()
    uploaded.write_bytes(b"lines")
    with opened(place) as db:
        schema.migrate(db, "0005")
        kept = api_batches.keep_file(db, "file-1", "", "lines.jsonl", 5, 3_600)
    backup, restore = documented()
    for line in backup:
        composed.do(line, tmp_path, **own)
    with opened(place) as db:
        api_batches.drop_file(db, "file-1")
        schema.migrate(db)
    uploaded.unlink()
    for line in restore:
        composed.do(line, tmp_path, **own)
    composed.start("migrate").wait_until("service_completed_successfully")
    assert uploaded.read_bytes() == b"lines"
    with opened(place) as db:
        assert schema.revision(db) == schema.REVISION
        assert api_batches.file(db, "file-1", api_batches.Whose()) == kept
    composed.stop()


def refused(composed: Composed) -> list[str]:
    """What Redis refused to whom."""
    redis_ = composed.running["redis"]
    password = redis_.environment["REDIS_ADMIN_PASSWORD"]
    client = redis.Redis.from_url(f"redis://admin:{password}@{redis_.address}:6379/0")
    found = [f"{entry['username']}: {entry['reason']} {entry['object']}" for entry in client.acl_log()]
    client.close()
    return found


def test_nothing_starts_while_a_secret_is_missing() -> None:
    """Each password of .env.example that is empty ends it, with words that say which and how to mend it."""
    secrets = [name for name in fresh_env() if name.endswith("_PASSWORD")]
    assert len(secrets) > 10
    for name in secrets:
        with pytest.raises(Refused, match=f"{name}: run sh ops/new-env.sh"):
            read(ROOT / "compose.yaml", fresh_env() | {name: ""})


def test_a_new_env_has_passwords_of_its_own() -> None:
    """Two runs share no password, no two roles do, and each is long enough."""
    one, other = ([value for name, value in fresh_env().items() if name.endswith("_PASSWORD")] for _ in range(2))
    assert len({*one, *other}) == 2 * len(one)
    assert min(map(len, one)) >= 32


def test_an_env_that_is_there_keeps_what_it_says(tmp_path: Path) -> None:
    """Every line stays, what is missing or empty is added once, and only its owner may read it; stderr says which."""
    first = new_env(tmp_path)
    file = tmp_path / ".env"
    assert (file.stat().st_mode & 0o777, first.stdout) == (0o600, "")
    assert "wrote .env" in first.stderr
    mine = "# mine\nPOSTGRES_PASSWORD=my own=word\nAPI_PASSWORD=\nCOMPOSE_PROFILES="
    file.write_text(mine)
    file.chmod(0o644)
    said = new_env(tmp_path).stderr
    assert file.read_text().startswith(mine + "\n")
    assert file.stat().st_mode & 0o777 == 0o600
    found = env_file(file.read_text())
    assert (found["POSTGRES_PASSWORD"], found["COMPOSE_PROFILES"]) == ("my own=word", "")
    needs = [name for name in fresh_env() if name.endswith("_PASSWORD")]
    assert [name for name in needs if not found.get(name)] == []
    assert "API_PASSWORD" in said
    assert "POSTGRES_PASSWORD" not in said
    before = file.read_bytes()
    assert new_env(tmp_path).stderr == "kept .env as it was\n"
    assert file.read_bytes() == before
    file.write_text("")  # as `>.env` leaves it
    file.chmod(0o644)
    assert "wrote .env" in new_env(tmp_path).stderr
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("API_PASSWORD=abc\nAPI_PASSWORD= # none\n")
    assert "API_PASSWORD" in new_env(tmp_path).stderr


def services(**more: str) -> dict[str, Any]:
    """Every service, of all profiles."""
    found: dict[str, Any] = read(ROOT / "compose.yaml", fresh_env(**more))["services"]
    return found


def test_the_services_are_those_that_were_promised() -> None:
    """The roles are there, and what runs besides only by its profile."""
    there = services()
    plain = {name for name, service in there.items() if not service.get("profiles")}
    assert plain == {"redis", "postgres", "migrate", "worker", "beat", "api", "flower", "metrics"}
    profiles = {
        p: {n for n, s in there.items() if p in s.get("profiles", ())} for p in ("cloud", "cli", "ollama", "gpu")
    }
    assert profiles == {"cloud": {"cloud-worker"}, "cli": {"cli"}, "ollama": {"ollama"}, "gpu": {"ollama-gpu"}}
    assert {n for n, s in there.items() if "monitoring" in s.get("profiles", ())} == {"prometheus", "grafana"}


def test_nothing_listens_beyond_loopback() -> None:
    """Every published port is of 127.0.0.1, and Redis and PostgreSQL are on a network without a way in or out."""
    there = services()
    ports = [port for service in there.values() for port in service.get("ports", ())]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    assert there["redis"]["networks"] == there["postgres"]["networks"] == ["inside"]
    assert read(ROOT / "compose.yaml", fresh_env())["networks"]["inside"] == {"internal": True}


def test_only_the_cloud_worker_has_a_clouds_key() -> None:
    """A key of .env reaches one service's environment."""
    holders = [n for n, s in services(ANTHROPIC_API_KEY="a-key").items() if "a-key" in json.dumps(s)]
    assert holders == ["cloud-worker"]
    assert [name for name, service in services().items() if "env_file" in service] == ["beat"]


def test_only_the_api_tells_the_end_of_batches() -> None:
    """The address and the secret of .env reach it, under the names that the example says for offload.yaml."""
    there = services(API_WEBHOOK_URL="an-address", API_WEBHOOK_SECRET="a-secret")
    holders = [n for n, s in there.items() if {"an-address", "a-secret"} & set(s.get("environment", {}).values())]
    assert holders == ["api"]
    example = (ROOT / ".env.example").read_text()
    (said,) = re.findall(r"In offload.yaml: (.*)$", example, re.MULTILINE)
    (target,) = parse(said, "the example").api.webhooks
    assert {target.url_env, target.secret_env} <= there["api"]["environment"].keys()


def test_each_role_has_its_own_password_in_redis() -> None:
    """A service knows the password of its role, and only Redis knows them all."""
    environment = fresh_env()
    there = read(ROOT / "compose.yaml", environment)["services"]
    for role in ("submitter", "api", "worker", "cloud", "beat", "flower", "metrics"):
        password = environment[f"REDIS_{role.upper()}_PASSWORD"]
        holders = [name for name, service in there.items() if password in json.dumps(service)]
        assert len(holders) == 2, (role, holders)
        assert "redis" in holders


def test_what_can_be_tied_is_tied() -> None:
    """Containers have no capabilities, no way to get any, a root that is read-only, logs that end, a restart."""
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name
        assert service["restart"] == ("no" if name in ("migrate", "cli") else "unless-stopped"), name


def test_a_stop_leaves_time_to_drain() -> None:
    """The grace outlasts OFFLOAD_DRAIN_S and the time that recording may take after it, in the file and the example."""
    for environment in (fresh_env(), {**fresh_env(), "OFFLOAD_DRAIN_S": "", "OFFLOAD_STOP_GRACE": ""}):
        worker = read(ROOT / "compose.yaml", environment)["services"]["worker"]
        drain = float(worker["environment"]["OFFLOAD_DRAIN_S"])
        assert seconds(worker["stop_grace_period"]) >= drain + Times().lease + STOP_GRACE_S


def example(files: tuple[str, ...]) -> dict[str, str]:
    """What the .env.example beside these files names, filled in."""
    if files == ("ops/compose.worker.yaml",):
        empty = env_file((ROOT / "ops" / "worker.env.example").read_text())
        return {name: value or "filled-in" for name, value in empty.items()}
    return fresh_env(OFFLOAD_JOIN_ADDRESS="127.0.0.2")


@pytest.mark.parametrize("files", FILES)
def test_every_variable_has_its_line_in_the_example(files: tuple[str, ...]) -> None:
    """What the compose files need is in the example beside them, or has a default."""
    for file in files:
        used = re.findall(r"\$\{(\w+)(:[-?])?", (ROOT / file).read_text())
        assert [name for name, way in used if way != ":-" and name not in example(files)] == []


@pytest.mark.parametrize("files", FILES)
def test_docker_compose_accepts_the_files(files: tuple[str, ...], tmp_path: Path) -> None:
    """`docker compose config` finds nothing wrong, with every profile."""
    client = compose_client()
    (tmp_path / "env").write_text("".join(f"{name}={value}\n" for name, value in example(files).items()))
    named = [word for file in files for word in ("-f", file)]
    command = [*client, "--env-file", str(tmp_path / "env"), *named, "--profile", "*", "config", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def compose_client() -> list[str]:
    """Docker's own reader of these files; skips where the machine has none."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True).returncode == 0:
            return command
    pytest.skip("docker compose is not installed here")
