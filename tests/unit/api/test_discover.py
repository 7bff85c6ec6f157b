"""What `offload up` makes of the model servers it finds, where nobody has written a configuration."""

from __future__ import annotations

import pytest
import yaml

from api.embedded import discover
from tasks.config import parse
from tasks.privacy import Reach, Tier
from workers.detect import Found

OLLAMA = Found("ollama", "ollama", "http://127.0.0.1:11434", "ollama", ("gemma3:4b", "bge-m3:latest"))


def test_without_a_key_there_is_no_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each class gets the model that suits it, and class cloud nobody."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    registry = parse(yaml.safe_dump(discover.choose([OLLAMA])), "detected.yaml")
    assert [s.model for s in registry.classes["small"].serve] == ["gemma3:4b"]
    assert [s.model for s in registry.classes["embed"].serve] == ["bge-m3:latest"]
    assert not registry.has_cloud


def test_with_a_key_there_is_a_cloud_that_gets_nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cloud worker is set up where its key is set, and no tier is loosened by that."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    registry = parse(yaml.safe_dump(discover.choose([OLLAMA])), "detected.yaml")
    assert registry.providers["claude"].reach is Reach.CLOUD
    assert registry.classes_of("claude") == ("cloud",)
    assert registry.privacy.default is not Tier.CLOUD_OK


def test_only_a_server_for_every_class_makes_the_simulator_needless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator stands in unless small, coder, reason and embed all have a model."""
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    assert not discover.serves_all(discover.choose([OLLAMA]))
    whole = Found(
        "ollama", "ollama", "http://127.0.0.1:1", "ollama", ("gemma3:4b", "bge-m3", "gemma4:26b", "qwen-coder")
    )
    assert discover.serves_all(discover.choose([whole]))
    assert discover.serves_all(discover.simulated("http://127.0.0.1:1"))
