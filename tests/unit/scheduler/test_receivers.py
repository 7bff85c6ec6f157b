"""A receiver is tried once, for seconds at most, and its address is shown to nobody."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator

import pytest

from scheduler import receivers
from scheduler.receivers import Answer, Apprise, Webhook, deliver
from tasks.registry import NotifySettings
from tests.support.ports import free_port
from tests.support.receiver import SECRET, Receiver, receiver
from tests.support.waiting import eventually

NAME = "SLACK"


@pytest.fixture
def hook() -> Iterator[Receiver]:
    """A real server."""
    with receiver() as made:
        yield made


def told(url: str, text: str = "Offload: a test") -> Answer:
    answer = deliver(Webhook(NAME, {NAME: url}), text)
    assert SECRET not in str(answer)
    assert "B0SECRET" not in str(answer)
    return answer


def test_a_webhook_gets_slacks_shape(hook: Receiver) -> None:
    """Plain text for whoever reads only that, and the same as a block."""
    assert told(hook.url) == Answer(True, "HTTP 200", "ok")
    (body,) = hook.got
    assert body["text"] == "Offload: a test"
    assert body["blocks"] == [{"type": "section", "text": {"type": "mrkdwn", "text": "Offload: a test"}}]


@pytest.mark.parametrize("status", [302, 307, 400, 404, 429, 500, 503])
def test_anything_but_success_is_none(hook: Receiver, status: int) -> None:
    """A redirect is not followed: it could lead anywhere."""
    hook.status, hook.says = status, b"no_service"
    answer = told(hook.url)
    assert (answer.ok, answer.said) == (False, "no_service")
    assert answer.words.startswith(f"HTTP {status}")
    assert len(hook.got) == 1


def test_an_answer_that_repeats_the_address_is_not_shown(hook: Receiver) -> None:
    """Many servers do so in a 404."""
    hook.status, hook.says = 404, f"cannot POST /services/{SECRET}".encode()
    assert told(hook.url) == Answer(False, "HTTP 404")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "SLACK is not set"),
        ("hooks.example/T0SECRET/B0SECRET", "SLACK holds no http(s) address"),
        ("ftp://hooks.example/T0SECRET/B0SECRET", "SLACK holds no http(s) address"),
        ("http://[::1/T0SECRET/B0SECRET", "SLACK holds no http(s) address"),
        ("http://h:99999/T0SECRET/B0SECRET", "SLACK holds no http(s) address"),
        ("http://127.0.0.1:{port}/T0SECRET/B0SECRET", "Connection refused"),
        ("http://h .invalid/T0SECRET/B0SECRET", ""),
        ("http://127.0.0.1:{port}/T0SECRET B0SECRET\n", ""),
    ],
)
def test_an_address_that_leads_nowhere_is_told_without_it(address: str, words: str) -> None:
    """The variable's name and the system's word are enough."""
    answer = told(address.format(port=free_port()))
    assert not answer.ok
    assert words in answer.words


@pytest.mark.parametrize("drips", [False, True])
def test_who_hangs_is_left(hook: Receiver, monkeypatch: pytest.MonkeyPatch, drips: bool) -> None:
    """Silent, or with a byte now and then: the try ends with its time, and no thread stays behind."""
    monkeypatch.setattr(receivers, "DELIVERY_S", 0.3)
    hook.drips = drips
    if not drips:
        hook.holds.clear()
    assert told(hook.url) == Answer(False, "no answer within 0.3 s")
    left = [thread for thread in threading.enumerate() if thread.name == "delivery"]
    eventually(lambda: not any(thread.is_alive() for thread in left), "its connection was closed")


def test_a_name_and_password_go_into_a_header(hook: Receiver) -> None:
    """As ntfy and others want it."""
    assert told(hook.url.replace("http://", "http://me:p%40ss@")).ok
    assert hook.headers["Authorization"] == "Basic bWU6cEBzcw=="


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'imghdr':DeprecationWarning")  # loaded by apprise
def test_apprise_is_told_too(hook: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    """Through its own services, json here; at no log level does it show the address."""
    caplog.set_level(logging.DEBUG)
    environment = {"MY_JSON": hook.url.replace("http://", "json://"), "WRONG": f"nothing://{SECRET}"}
    assert deliver(Apprise("MY_JSON", environment), "Offload: a test") == Answer(True, "taken")
    assert hook.got[0]["message"] == "Offload: a test"
    hook.status = 500
    assert deliver(Apprise("MY_JSON", environment), "Offload: a test") == Answer(False, "not taken")
    assert deliver(Apprise("WRONG", environment), "x") == Answer(False, "WRONG holds no address that apprise knows")
    assert "SECRET" not in caplog.text


def test_without_apprise_the_extra_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool without it starts and says so."""
    monkeypatch.setitem(sys.modules, "apprise", None)
    answer = deliver(Apprise("MY_JSON", {"MY_JSON": "json://x"}), "x")
    assert answer == Answer(False, "apprise is not installed")


def test_everybody_who_is_named_is_a_receiver() -> None:
    """Each by its variable, once."""
    settings = NotifySettings(webhook_env=NAME, apprise_env=("A", "B", "A"))
    found = receivers.receivers(settings, {NAME: f"https://hooks.example/{SECRET}", "A": f"discord://{SECRET}"})
    assert [(type(r).__name__, r.name, r.host) for r in found] == [
        ("Webhook", NAME, "hooks.example"), ("Apprise", "A", "discord"), ("Apprise", "B", ""),
    ]  # fmt: skip
