"""Each role in Redis as a user of its own, by ops/redis/users.acl: what it needs and nothing else."""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from kombu.asynchronous import Hub

from api.use_cases import doctor
from tasks.app import make_app
from tasks.settings import Settings
from tests.support.pool import TestPool, simulated
from tests.support.ports import free_port
from tests.support.redis_roles import OPS, ROLES, RedisOfRoles
from tests.support.waiting import eventually
from workers.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisOfRoles]:
    """A Redis with the roles' users."""
    made = RedisOfRoles(tmp_path_factory.mktemp("roles"))
    yield made
    made.close()


@pytest.fixture
def pool(server: RedisOfRoles, tmp_path: Path) -> Iterator[TestPool]:
    """A pool on it; no role runs yet."""
    with in_thread(SimulatorConfig(slots=64, loaded_limit=8)) as simulator:
        made = TestPool(tmp_path, simulated(simulator.url), redis=server)  # type: ignore[arg-type]  # a Redis, too
        yield made
        made.close()


def jobs(n: int) -> list[dict[str, Any]]:
    return [{"category": ("summarize", "comment")[i % 2], "prompt": f"job {i}"} for i in range(n)]


def test_a_pool_runs_with_every_role_on_its_own_user(server: RedisOfRoles, pool: TestPool) -> None:
    """Batches end, a killed worker's and a wiped Redis's too, pages show, and Redis has refused nobody anything."""
    ports = {role: free_port() for role in ("flower", "metrics")}
    for role, port in ports.items():
        pool.start(role, "--port", str(port), OFFLOAD_REDIS_URL=server.of(role), OFFLOAD_FLOWER_AUTH="me:secret")
    pool.start("beat", OFFLOAD_REDIS_URL=server.of("beat"))
    pool.worker(OFFLOAD_REDIS_URL=server.of("worker"))
    pool.worker(node="gpu", OFFLOAD_REDIS_URL=server.of("node"))
    assert pool.finished(pool.submit(jobs(200)))
    pool.kill_workers()
    batch_id = pool.submit(jobs(200))
    server.client.flushall()
    pool.worker(OFFLOAD_REDIS_URL=server.of("node"))
    assert len(pool.finished(batch_id)) == 200
    assert pool.cli("doctor").text.count("ok      redis") == 1
    for page, word in (("workers", "here/sim"), ("api/workers?refresh=true", "here/sim"), ("broker", "offload.small")):
        eventually(lambda at=page, what=word: what in shown(ports["flower"], at), f"Flower shows {page}", 60)  # type: ignore[misc]
    eventually(lambda: "offload_redis_up 1.0" in shown(ports["metrics"], "metrics"), "Redis is told of", 60)
    eventually(lambda: pool.cli("status").code == 0, "the status can be read")
    assert server.refused() == []


def shown(port: int, page: str) -> str:
    """A page of a role; empty while it does not answer."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{page}")
    request.add_header("Authorization", "Basic " + base64.b64encode(b"me:secret").decode())
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


FORBIDDEN = (
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "GET", "*"),
    ("KEYS", "*"),
    ("SCAN", "0"),
    ("SHUTDOWN",),
    ("ACL", "LIST"),
    ("GET", "another key"),
    ("LPUSH", "another key", "x"),
    ("LRANGE", "another key", "0", "-1"),
    ("REPLICAOF", "127.0.0.2", "1"),
    ("EVAL", "return redis.call('GET', 'another key')", "0"),
)


@pytest.mark.parametrize("role", [r for r in ROLES if r != "admin"])
def test_no_role_may_do_anything_else(server: RedisOfRoles, role: str) -> None:
    """Wiping, configuring, listing, another program's keys: each is refused to each role."""
    client: Any = server.connect(role)
    try:
        for command in FORBIDDEN:
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)
    finally:
        client.close()


@pytest.mark.parametrize(
    ("role", "command"),
    [
        ("submitter", ("BRPOP", "offload.small", "1")),
        ("submitter", ("LRANGE", "offload.small", "0", "-1")),
        ("submitter", ("DEL", "offload.small")),
        ("worker", ("BRPOP", "scheduler", "1")),
        ("worker", ("LPUSH", "scheduler", "x")),
        ("worker", ("PUBLISH", "/0.celery.pidbox", "x")),
        ("worker", ("DEL", "offload.small")),
        ("cloud", ("BRPOP", "offload.small", "1")),
        ("cloud", ("BRPOP", "scheduler", "1")),
        ("node", ("DEL", "unacked")),
        ("flower", ("BRPOP", "offload.small", "1")),
        ("flower", ("LPUSH", "offload.small", "x")),
        ("metrics", ("LPUSH", "offload.small", "x")),
        ("metrics", ("BRPOP", "offload.small", "1")),
        ("beat", ("BRPOP", "offload.small", "1")),
    ],
)
def test_a_role_may_not_do_another_roles_work(server: RedisOfRoles, role: str, command: tuple[str, ...]) -> None:
    """Who submits takes nothing, who watches changes nothing, the cloud's worker takes no job of home."""
    client: Any = server.connect(role)
    try:
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command)
    finally:
        client.close()


@pytest.mark.parametrize("role", ["worker", "node", "cloud", "beat", "flower"])
def test_what_a_dead_worker_had_received_keeps_no_role_out(server: RedisOfRoles, role: str) -> None:
    """Celery would give another role's message back as it connects: it does not, so nobody is refused for it."""
    server.client.acl_log_reset()
    for queue in ("offload.small", "offload.cloud", "scheduler"):
        held = json.dumps([{"body": "", "headers": {}, "properties": {"delivery_tag": queue}}, "", queue])
        server.client.hset("unacked", queue, held)
        server.client.zadd("unacked_index", {queue: time.time() - 2_000})
    app, hub = make_app(server.of(role)), Hub()  # type: ignore[no-untyped-call]  # kombu has no types
    try:
        with app.connection_for_read() as connection:
            assert connection.default_channel
            connection.transport.register_with_event_loop(connection.connection, hub)
        assert server.refused() == []
    finally:
        hub.close()  # type: ignore[no-untyped-call]
        server.client.delete("unacked", "unacked_index", "unacked_mutex")
        server.client.acl_log_reset()


@pytest.mark.parametrize("role", ["submitter", "api", "worker", "node", "cloud", "beat"])
def test_doctor_finds_redis_well_as_any_role(server: RedisOfRoles, role: str) -> None:
    """Whose address a machine of the pool has, its `offload doctor` may try a write."""
    pool: Any = SimpleNamespace(settings=Settings(redis_url=server.of(role)))
    assert [finding.detail for finding in doctor._redis(pool) if not finding.ok] == []


def test_nobody_comes_in_without_a_password(server: RedisOfRoles) -> None:
    """No user, a wrong password, another role's password: all are turned away."""
    for who in ("", "worker:wrong@", f"worker:{server.passwords['beat']}@", f"default:{server.passwords['admin']}@"):
        client = redis.Redis.from_url(f"redis://{who}127.0.0.1:{server.port}/0")
        with pytest.raises((redis.AuthenticationError, redis.exceptions.NoPermissionError)):
            client.ping()
        client.close()


def test_the_server_starts_with_all_passwords_or_not_at_all(tmp_path: Path) -> None:
    """A role without a password ends the start with its variable's name; no password is written down."""
    started = RedisOfRoles(tmp_path / "all")
    started.process.send_signal(signal.SIGTERM)
    written = (tmp_path / "all" / "users.acl").read_text() + (tmp_path / "all" / "redis.log").read_text()
    assert not [role for role, password in started.passwords.items() if password in written]
    started.close()
    done = subprocess.run(
        ["sh", str(OPS / "redis" / "start.sh"), str(tmp_path), str(tmp_path)],
        env={"PATH": "/usr/bin:/bin", "REDIS_ADMIN_PASSWORD": "x"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "REDIS_SUBMITTER_PASSWORD" in done.stderr


def test_every_user_is_a_role(server: RedisOfRoles) -> None:
    """The rules name the roles that there are, and nobody else comes in."""
    users = re.findall(r"^user (\w+) on ", (OPS / "redis" / "users.acl").read_text(), re.MULTILINE)
    assert sorted(users) == sorted(ROLES)
    assert sorted(server.client.acl_users()) == sorted([*ROLES, "default"])
