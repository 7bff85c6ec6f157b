"""What `offload up` hands to its roles, and what it does while they run."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from api.embedded import discover
from api.embedded import supervisor as supervising
from api.embedded.supervisor import READERS, Role, Supervisor, _secrets
from tasks.config import parse
from tasks.ledger import ticks
from tasks.ledger.schema import open_ledger
from tasks.settings import Settings
from tests.support.logs import said_by
from workers.detect import Found

CONFIG = {"notify": {"webhook_env": "TEAM", "apprise_env": ["PHONE"]}}


def test_secrets_go_to_the_role_that_needs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clouds' keys to their workers, the addresses of who is told to beat, and to nobody else."""
    registry = parse(yaml.safe_dump(CONFIG), "a test's")
    for name in ("TEAM", "PHONE", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "secret")
    supervisor = Supervisor(Settings(home=tmp_path), _keys=_secrets(registry))
    assert "secret" not in supervisor._role("worker x", ["x"]).environment.values()
    beat = supervisor._role("beat", ["x"], registry.notify.receivers).environment
    assert {name for name, value in beat.items() if value == "secret"} == {"TEAM", "PHONE"}


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    """A supervisor whose pool is up without a model server; no role is a process."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    monkeypatch.setattr(Role, "start", lambda role: None)
    monkeypatch.setattr(discover, "find_servers", list)
    supervisor = Supervisor(Settings(home=tmp_path))
    supervisor.settings.run_dir.mkdir()
    supervisor.roles = [Role(name, (), 1.0, {}) for name in ("redis", *READERS)]
    supervisor._pool = {}
    return supervisor


def test_a_pool_without_a_model_server_says_how_to_look_around(alone: Supervisor) -> None:
    """Who has no model server yet is told that jobs wait, and the flag that needs none."""
    said = alone._servers(parse(yaml.safe_dump({"providers": []}), "a test's"))
    assert "jobs wait" in said
    assert "--simulator" in said


def test_a_server_that_comes_later_is_told_to_all_roles(alone: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets its worker, and who has read of none starts anew; while none comes, nobody does."""
    alone._look_again()
    assert [role.name for role in alone.roles if role.asked_to_stop] == []
    found = Found("ollama", "ollama", "http://127.0.0.1:11434", "ollama", ("gemma3:4b",))
    monkeypatch.setattr(discover, "find_servers", lambda: [found])
    alone._look_again()
    assert [role.name for role in alone.roles] == ["redis", *READERS, "worker ollama"]
    assert [role.name for role in alone.roles if role.asked_to_stop] == list(READERS)
    assert "11434" in json.loads(alone.settings.pool_file.read_bytes())["servers"]


def test_a_typo_does_not_end_the_pool(alone: Supervisor) -> None:
    """What is wrong in offload.yaml is said, with its line, and looked at again later."""
    (alone.settings.home / "offload.yaml").write_text("retention: {calls_dais: 30}\n")
    with said_by(supervising) as logs:
        alone._look_again()
    assert ["offload.yaml:1" in line.get("fault", "") for line in logs] == [True]
    assert alone.roles == [role for role in alone.roles if not role.asked_to_stop]


#: an API as a process: listens on the port that its command line ends with, or ends
LISTENER = """
import pathlib, socket, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[-1])))
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


def test_an_api_whose_port_was_taken_gets_another(tmp_path: Path) -> None:
    """Between choosing a port and listening somebody else may take it: the pool comes up, and says the new one."""
    supervisor = Supervisor(Settings(home=tmp_path))
    supervisor.settings.run_dir.mkdir()
    db = open_ledger(supervisor.settings.ledger())
    ticks.tick(db, "sweep", {})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        supervisor._pool = {"started_at": 0.0, "api": f"http://127.0.0.1:{port}"}
        command = (sys.executable, "-c", LISTENER, str(supervisor.settings.api_sign), "--port", str(port))
        supervisor.roles = [Role("api", command, 1.0, dict(os.environ))]
        try:
            supervisor._wait_until_ready(db)
            chosen = urlsplit(supervisor._pool["api"]).port or 0
            assert chosen != port
            socket.create_connection(("127.0.0.1", chosen), 5).close()
        finally:
            supervisor._stop_all()
            db.close()
