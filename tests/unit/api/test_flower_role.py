"""Who may see Flower's pages, and how they show a slice."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from api.embedded import redis_server
from api.flower_role import Door, auth, check_door, is_loopback, shown
from tasks.app import Publisher, make_app
from tasks.errors import PoolError, UsageError
from tasks.settings import Settings
from tests.support.cli import offload
from tests.support.pool import clean_environment
from tests.support.ports import chosen_by_pool, free_port


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_chosen_password(address: str, tmp_path: Path) -> None:
    """Only this machine reaches a loopback address, so a made password does."""
    assert is_loopback(address)
    check_door(Door(address), Settings(home=tmp_path))


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "", "192.168.1.5", "10.0.0.1", "head", "localhost.example.com"])
def test_anything_else_needs_one(address: str, tmp_path: Path) -> None:
    """An address that others reach is refused until somebody has chosen a password."""
    assert not is_loopback(address)
    with pytest.raises(UsageError, match="OFFLOAD_FLOWER_AUTH"):
        check_door(Door(address), Settings(home=tmp_path))
    check_door(Door(address), Settings(home=tmp_path, flower_auth=SecretStr("me:secret")))


def test_the_command_refuses_before_it_listens(tmp_path: Path) -> None:
    """`offload flower` on all addresses, and with a prefix that is none, is exit 2 and says why."""
    environment = clean_environment() | {"OFFLOAD_HOME": str(tmp_path), "OFFLOAD_REDIS_URL": "redis://127.0.0.1:1/0"}
    for options, word in {
        ("--address", "0.0.0.0"): "OFFLOAD_FLOWER_AUTH",
        ("--url-prefix", "a b"): "--url-prefix",
        ("--port", "70000"): "--port",
    }.items():
        ran = offload(environment, "flower", *options)
        assert ran.code == 2
        assert word in ran.stderr
    assert not (tmp_path / "run").exists()


def test_a_password_is_made_once(tmp_path: Path) -> None:
    """What was made is kept for the owner alone; what is no user:password, or was taken away, is made anew."""
    settings = Settings(home=tmp_path / "new" / "home")
    first = auth(settings)
    user, password = first.split(":")
    assert (user, len(password)) == ("offload", 32)
    file = settings.flower_auth_file
    file.chmod(0o644)
    assert auth(settings) == first
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("")
    second = auth(settings)
    file.unlink()
    assert len({first, second, auth(settings)}) == 3
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert settings.flower_auth_place == str(file)


def test_a_chosen_password_is_not_kept(tmp_path: Path) -> None:
    """OFFLOAD_FLOWER_AUTH is used as it is, shown by name only, and written nowhere."""
    settings = Settings(home=tmp_path, flower_auth=SecretStr("me:secret"))
    assert auth(settings) == "me:secret"
    assert list(tmp_path.iterdir()) == []
    assert settings.flower_auth_place == "OFFLOAD_FLOWER_AUTH"
    assert "secret" not in repr(settings)


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Where the password cannot be kept, the error names the file."""
    (tmp_path / "home").touch()
    settings = Settings(home=tmp_path / "home")
    with pytest.raises(PoolError, match=r"flower\.auth"):
        auth(settings)


def test_the_address_that_is_printed_opens() -> None:
    """The first page's address has the prefix and its slash, and brackets where an address needs them."""
    assert Door().url(5555) == "http://127.0.0.1:5555/"
    assert Door("::1", 0, "pool/watch").url(7) == "http://[::1]:7/pool/watch/"


def test_the_wanted_port_is_taken_where_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that somebody listens at is left to them; once it is free it is the one."""
    monkeypatch.setattr(redis_server, "free_port", chosen_by_pool)
    wanted = free_port()
    with socket.create_server(("127.0.0.1", wanted)):
        assert redis_server.free_port(wanted) not in (0, wanted)
    assert redis_server.free_port(wanted) == wanted


def test_what_tests_start_listens_where_the_system_puts_nobody(tmp_path: Path) -> None:
    """A test's Redis has a port that no outgoing connection gets, and never one that a test was given just before."""
    ports = [redis_server.prepare(tmp_path, tmp_path).port for _ in range(2)]
    assert ports[0] != ports[1]
    assert max(ports) < 32_768


def test_a_slice_is_shown_in_one_short_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a message shows of a slice is understood, and anything else is shown as it is; the message is an id."""
    sent: list[dict[str, object]] = []
    publisher = Publisher(make_app("memory://"))
    monkeypatch.setattr(publisher, "send", lambda task, kwargs, queue, **options: sent.append(options | kwargs))
    publisher.send_slice("s1", "batch_1", "my-class.2", 12)
    assert sent[0]["slice"] == "s1"
    assert sent[0].keys() == {"slice", "task_id", "kwargsrepr"}
    assert shown(str(sent[0]["kwargsrepr"])) == "my-class.2, 12 jobs, batch_1"
    for other in ("{}", "", "{'slice': 's1'}", "{'batch': 1"):
        assert shown(other) == other
