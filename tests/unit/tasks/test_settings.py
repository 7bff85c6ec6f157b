"""What the environment says, and how its faults are told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tasks.errors import ConfigError
from tasks.settings import Settings, Times, load_settings, unknown_variables
from tests.support.pool import clean_environment


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing of Offload."""
    import os

    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)
    return monkeypatch


def test_times_fit_together() -> None:
    """A lease outlives two missed heartbeats, calls are closed before it is over, and so however they are divided."""
    for times in (Times(), Times().divided(10)):
        assert times.lease > 2 * times.heartbeat
        assert times.lease - times.fence_margin > 2 * times.heartbeat
        assert times.worker_gone > times.lease
        assert times.loop_stuck < times.lease
        assert times.slice_lost >= times.sweep


def test_all_times_are_divided_alike() -> None:
    """A hurried test keeps every proportion."""
    whole, tenth = dataclasses.asdict(Times()), dataclasses.asdict(Times().divided(10))
    assert tenth == pytest.approx({name: seconds / 10 for name, seconds in whole.items()})


def test_every_setting_is_read_from_its_variable(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """OFFLOAD_<NAME> sets <name>."""
    wanted = {
        "home": str(tmp_path / "h"),
        "config": str(tmp_path / "o.yaml"),
        "policy": str(tmp_path / "p.yaml"),
        "log": str(tmp_path / "l.jsonl"),
        "redis_url": "redis://r:1/0",
        "database_url": "sqlite:////x.db",
        "node": "n1",
        "log_level": "debug",
        "log_format": "json",
        "drain_s": "3",
        "api_key": "ofl_of-an-administrator",
        "flower_auth": "me:secret",
        "time_divisor": "10",
    }
    assert set(wanted) == set(Settings.model_fields)
    for name, value in wanted.items():
        environment.setenv(f"OFFLOAD_{name.upper()}", value)
    settings = load_settings()
    said = {"drain_s": "3.0", "api_key": "**********", "flower_auth": "**********", "time_divisor": "10.0"}
    assert {n: str(getattr(settings, n)) for n in wanted} == wanted | said
    assert settings.flower_auth is not None
    assert settings.flower_auth.get_secret_value() == "me:secret"
    assert settings.times == Times().divided(10)
    assert settings.ledger() == "sqlite:////x.db"
    assert settings.broker_url() == "redis://r:1/0"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("DRAIN_S", value) for value in ("-1", "soon", "inf")),
        *(("TIME_DIVISOR", value) for value in ("0", "nan", "s3cret")),
        *(("NODE", value) for value in ("s3cret/x", "n" * 64)),
        ("HOME", "~s3cret/x"),
        *(("REDIS_URL", f"redis://:s3cret{rest}") for rest in ("/x@r:1/0", "#x@r:1", "@r:99999", "@r:1/x", "@[::1")),
        ("REDIS_URL", "unix:///s3cret"),
    ],
)
def test_a_wrong_value_names_its_variable(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The error names the variable and never shows its value."""
    environment.setenv(f"OFFLOAD_{name}", value)
    with pytest.raises(ConfigError, match=f"^OFFLOAD_{name}: ") as caught:
        load_settings()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://r", "redis://u:p%2Fw@[::1]:1/", "rediss://r:1/3?ssl_cert_reqs=none"])
def test_an_address_of_redis(environment: pytest.MonkeyPatch, url: str) -> None:
    """Port, database and password may be left out, and what follows a question mark is Redis's own."""
    environment.setenv("OFFLOAD_REDIS_URL", url)
    assert load_settings().redis_url == url


def test_unknown_variables_are_found(environment: pytest.MonkeyPatch) -> None:
    """A misspelt variable is not silent, a right one is not named."""
    environment.setenv("OFFLOAD_HOEM", "/x")
    environment.setenv("OFFLOAD_HOME", "/x")
    assert unknown_variables() == ["OFFLOAD_HOEM"]


def test_the_home_is_absolute(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A relative home, or one with ~, means the same in every process."""
    environment.chdir(tmp_path)
    environment.setenv("HOME", str(tmp_path / "me"))
    environment.setenv("OFFLOAD_HOME", "state")
    assert load_settings().home == tmp_path / "state"
    environment.setenv("OFFLOAD_HOME", "~/state")
    assert load_settings().home == tmp_path / "me" / "state"


def test_an_empty_variable_says_nothing_and_words_have_no_case(environment: pytest.MonkeyPatch) -> None:
    """OFFLOAD_HOME= is the default home; DEBUG is debug."""
    default = load_settings().home
    environment.setenv("OFFLOAD_HOME", "")
    environment.setenv("OFFLOAD_LOG_LEVEL", "DEBUG")
    assert (load_settings().home, load_settings().log_level) == (default, "debug")


@pytest.mark.parametrize("said", ["zanzibar", ":zanzibar", "me:", "me:zan zibar", "me:zänzibar"])
def test_a_password_that_cannot_be_is_not_repeated(environment: pytest.MonkeyPatch, said: str) -> None:
    """What is no user:password in ASCII is a fault that names the variable, and never its value."""
    environment.setenv("OFFLOAD_FLOWER_AUTH", said)
    with pytest.raises(ConfigError, match=r"^OFFLOAD_FLOWER_AUTH: must be user:password") as fault:
        load_settings()
    assert "zanzibar" not in str(fault.value)


@pytest.mark.parametrize("said", [b"", b"{", b"[]", b'{"redis_url": 7}', b'{"pid": 1}'])
def test_a_broken_pool_file_is_no_pool(tmp_path: Path, said: bytes) -> None:
    """Whatever stands in pool.json, there is an address or there is none."""
    settings = Settings(home=tmp_path)
    settings.run_dir.mkdir()
    settings.pool_file.write_bytes(said)
    assert settings.broker_url() is None


def test_a_running_pool_says_where_its_redis_is(tmp_path: Path) -> None:
    """Without OFFLOAD_REDIS_URL the pool's own Redis is used."""
    settings = Settings(home=tmp_path)
    assert settings.broker_url() is None
    settings.run_dir.mkdir()
    settings.pool_file.write_text('{"redis_url": "redis://127.0.0.1:7/0"}')
    assert settings.broker_url() == "redis://127.0.0.1:7/0"
    assert settings.ledger() == tmp_path / "ledger.db"


def test_every_variable_is_in_the_readme() -> None:
    """Whoever looks for one finds all of them there."""
    said = (Path(__file__).parents[3] / "README.md").read_text().partition("## Settings")[2].partition("\n## ")[0]
    assert [name for name in Settings.model_fields if f"`OFFLOAD_{name.upper()}`" not in said] == []
