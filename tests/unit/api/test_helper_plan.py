"""The plan of the two helpers: that of the package, that of a configuration, and when it is made anew."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.helpers import kept, making
from api.helpers import plan as plans
from tasks.config import load_registry
from tasks.errors import ConfigError, UsageError
from tasks.policy import from_plain
from tasks.privacy import Tier
from tasks.settings import load_settings

CONFIG: dict[str, Any] = {
    "providers": [{"name": "mine", "kind": "ollama", "url": "http://127.0.0.1:1"}],
    "classes": {"small": {"serve": [{"provider": "mine", "model": "tiny"}]}},
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home where nothing is configured."""
    for name in ("CONFIG", "POLICY", "LOG"):
        monkeypatch.delenv(f"OFFLOAD_{name}", raising=False)
    monkeypatch.setenv("OFFLOAD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry each time that a plan is made from the whole configuration."""
    times: list[str] = []
    whole = making.plain_plan

    def counted() -> dict[str, Any]:
        times.append("made")
        return whole()

    monkeypatch.setattr(making, "plain_plan", counted)
    return times


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))


def test_the_shipped_plan_is_the_defaults() -> None:
    """defaults.json is what `python -m api.helpers.plan` writes; run it when a default has changed."""
    assert Path(plans.SHIPPED).read_text("utf-8") == making.shipped_text()


def test_without_a_configuration_nothing_is_loaded(home: Path, made: list[str]) -> None:
    """The shipped plan holds where nothing is written, and no file is made."""
    assert plans.in_force().way("classify").model == "gemma3:4b"
    assert made == []
    assert not home.exists()


def test_a_plan_is_made_once(home: Path, made: list[str]) -> None:
    """The configuration is loaded when it has changed, by content or by name, and not again until then."""
    write(home / "offload.yaml", CONFIG)
    assert [plans.in_force().way("classify").model for _ in range(3)] == ["tiny"] * 3
    assert len(made) == 1
    assert (home / "run" / plans.KEPT).stat().st_mode & 0o777 == 0o600
    changed = CONFIG | {"classes": {"small": {"serve": [{"provider": "mine", "model": "other"}]}}}
    write(home / "offload.yaml", changed)
    assert plans.in_force().way("classify").model == "other"
    (home / "policy.yaml").write_text("{version: 7, rules: []}")
    assert plans.in_force().policy["version"] == 7
    os.environ["OFFLOAD_CONFIG"] = str(home / "elsewhere.yaml")
    try:
        write(home / "elsewhere.yaml", CONFIG)
        assert plans.in_force().way("classify").model == "tiny"
    finally:
        del os.environ["OFFLOAD_CONFIG"]
    assert len(made) == 4


@pytest.mark.parametrize("junk", ["", "[]", "{", '{"key": 1}', "damaged"])
def test_a_damaged_plan_is_made_anew(home: Path, made: list[str], junk: str) -> None:
    """Whatever stands in the kept file, the plan is that of the configuration."""
    write(home / "offload.yaml", CONFIG)
    plans.in_force()
    path = home / "run" / plans.KEPT
    key = json.loads(path.read_bytes())["key"]
    path.write_text(json.dumps({"key": key, "categories": 3}) if junk == "damaged" else junk)
    assert plans.in_force().way("classify").model == "tiny"
    assert len(made) == 2


def test_what_offload_up_found_is_a_configuration(home: Path) -> None:
    """detected.yaml counts where the home has no offload.yaml, or one that names no servers."""
    write(home / "run" / "detected.yaml", CONFIG)
    assert plans.in_force().way("classify").model == "tiny"
    write(home / "offload.yaml", {})
    assert plans.in_force().way("classify").model == "tiny"
    write(home / "offload.yaml", {"classes": {"small": {"serve": [{"provider": "ollama", "model": "other"}]}}})
    assert plans.in_force().way("classify").model == "other"


def test_a_home_that_cannot_be_written_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is made each time then, and nobody is told."""
    (tmp_path / "file").write_text("")
    write(tmp_path / "offload.yaml", CONFIG)
    monkeypatch.setenv("OFFLOAD_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setenv("OFFLOAD_CONFIG", str(tmp_path / "offload.yaml"))
    assert plans.in_force().way("classify").model == "tiny"
    kept.write("other.json", {})
    assert kept.read("other.json") == {}


def test_a_fault_of_the_configuration_is_told(home: Path) -> None:
    """ConfigError with its place, from a file that is wrong and from one that is not there."""
    write(home / "offload.yaml", {"classes": {"small": {"serv": []}}})
    with pytest.raises(ConfigError, match="serv"):
        plans.in_force()
    os.environ["OFFLOAD_CONFIG"] = str(home / "nowhere.yaml")
    try:
        with pytest.raises(ConfigError, match="nowhere"):
            plans.in_force()
    finally:
        del os.environ["OFFLOAD_CONFIG"]


def test_a_plan_says_all_that_the_configuration_does(home: Path) -> None:
    """Policy, markers and tiers come back from the plan as the whole configuration has them."""
    privacy = {"default": "cloud_ok", "markers": {"INTERNAL": "local_only"}, "roots": {"~/clients": "local_only"}}
    write(home / "offload.yaml", CONFIG | {"privacy": privacy, "categories": {"code": {"privacy": "local_only"}}})
    registry = load_registry(load_settings())
    for _ in range(2):  # made, then kept
        plan = plans.in_force()
        assert from_plain(plan.policy) == registry.policy
        assert plan.markers == registry.markers
        assert plan.tier is Tier.CLOUD_OK
        assert plan.way("code").privacy is Tier.LOCAL_ONLY


@pytest.mark.parametrize(
    ("provider", "words"),
    [
        ({"kind": "gguf", "path": "/models/a.gguf"}, "model file"),
        ({"kind": "command", "command": ["say"], "reach": "local"}, "a command"),
        ({"kind": "openai", "url": "https://example.com/v1", "reach": "cloud"}, "left to the cloud"),
        (None, "no provider serves"),
    ],
)
def test_who_cannot_be_asked_straight_is_said(home: Path, provider: dict[str, Any] | None, words: str) -> None:
    """Model files, commands, clouds and nobody have no server; the words say what they are."""
    name = {"name": "odd"}
    serve = [{"provider": "odd", "model": "m"}] if provider else []
    config = {"providers": [name | provider] if provider else [], "classes": {"small": {"serve": serve}}}
    write(home / "offload.yaml", config)
    way = plans.in_force().way("classify")
    assert way.server is None
    assert words in way.hindrance
    assert way.cloud_only is ("cloud" in words)


def test_a_prompt_in_a_categorys_place_is_not_repeated(home: Path) -> None:
    """A category that is not there is named, with the one it may be; other words are not."""
    with pytest.raises(UsageError, match=r"unknown category sumarize \(did you mean summarize\?\)"):
        plans.in_force().way("sumarize")
    with pytest.raises(UsageError) as told:
        plans.in_force().way("My secret words")
    assert "secret" not in str(told.value)
