"""What `offload up` hands to its roles."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from api.embedded.supervisor import Supervisor, _secrets
from tasks.config import parse
from tasks.settings import Settings

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
