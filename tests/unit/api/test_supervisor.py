"""What `offload up` hands to its roles, and what it does while they run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from api.embedded import discover
from api.embedded.supervisor import READERS, Role, Supervisor, _secrets
from tasks.config import parse
from tasks.settings import Settings
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


def test_a_typo_does_not_end_the_pool(alone: Supervisor, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong in offload.yaml is said, with its line, and looked at again later."""
    (alone.settings.home / "offload.yaml").write_text("retention: {calls_dais: 30}\n")
    alone._look_again()
    assert "offload.yaml:1" in capsys.readouterr().out
    assert alone.roles == [role for role in alone.roles if not role.asked_to_stop]
