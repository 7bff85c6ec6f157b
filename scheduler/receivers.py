"""Who is told: a webhook, or anything that apprise knows.  Each is one try that ends within seconds.

An address is a secret.  It is read from its variable for each try, and neither it nor what others say of it is passed
on: only the host's name and a code.  A webhook gets Slack's shape, which Mattermost, Discord (its address with /slack)
and others take too; no redirect is followed, and no proxy asked.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import logging
import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

import orjson

from tasks.registry import NotifySettings

#: seconds that one delivery may take, from the look-up of the host to the answer
DELIVERY_S = 5.0
#: characters of an answer that a person is shown
MOST_SAID = 100


@dataclass(frozen=True)
class Answer:
    """What came of one try. words: for the ledger and logs. said: the receiver's own, for the person who asked."""

    ok: bool
    words: str
    said: str = ""


class Receiver(Protocol):
    """Somebody who can be told something; `name` is the variable that holds the address."""

    @property
    def name(self) -> str: ...

    @property
    def host(self) -> str:
        """Of the address, for people; empty where there is none."""

    def lacks(self) -> str:
        """What is missing here, in words; empty where nothing is. It loads what it needs, and asks nobody."""

    def tell(self, text: str) -> Answer:
        """Try once, lacking nothing; raises whatever goes wrong."""

    def cut(self) -> None:
        """End a try of another thread."""


def receivers(notify: NotifySettings, environment: Mapping[str, str] = os.environ) -> list[Receiver]:
    """Everybody whom the configuration names."""
    webhook = [Webhook(notify.webhook_env, environment)] if notify.webhook_env else []
    return [*webhook, *(Apprise(n, environment) for n in notify.receivers if n != notify.webhook_env)]


def deliver(receiver: Receiver, text: str) -> Answer:
    """Try once, for DELIVERY_S at most."""
    if why := receiver.lacks():
        return Answer(False, why)
    found: list[Answer] = []
    thread = threading.Thread(target=lambda: found.append(_tried(receiver, text)), daemon=True, name="delivery")
    thread.start()
    thread.join(DELIVERY_S)
    if found:
        return found[0]
    receiver.cut()  # what the thread makes of that is no answer
    return _late()


def _late() -> Answer:
    return Answer(False, f"no answer within {DELIVERY_S:g} s")


def _tried(receiver: Receiver, text: str) -> Answer:
    try:
        return receiver.tell(text)
    except TimeoutError:  # a socket's own may be the first
        return _late()
    except Exception as error:  # its own words may hold the address
        return Answer(False, getattr(error, "strerror", None) or type(error).__name__)


class Webhook:
    """Gets a POST of Slack's shape."""

    def __init__(self, name: str, environment: Mapping[str, str] = os.environ) -> None:
        self.name = name
        self._environment = environment
        self._connection: http.client.HTTPConnection | None = None

    @property
    def host(self) -> str:
        """The address's."""
        parts = self._parts()
        return (parts.hostname if parts else None) or ""

    def _parts(self) -> SplitResult | None:
        """The address; None where it is none."""
        try:
            parts = urlsplit(self._environment.get(self.name, "").strip())
            fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            return None
        return parts if fits else None

    def lacks(self) -> str:
        """An address."""
        return "" if self._parts() else _unset(self.name, self._environment) or f"{self.name} holds no http(s) address"

    def tell(self, text: str) -> Answer:
        """POST it; 2xx is success."""
        parts = self._parts()
        assert parts is not None
        body = {"text": text, "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": text}}]}
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = connection = kind(parts.hostname or "", parts.port, timeout=DELIVERY_S)
        with contextlib.closing(connection):
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", path, orjson.dumps(body), headers(parts))
            answer = connection.getresponse()
            said = answer.read(MOST_SAID * 4).decode("utf-8", "replace")
        why = ", and no redirect is followed" if 300 <= answer.status < 400 else ""
        return Answer(200 <= answer.status < 300, f"HTTP {answer.status}{why}", _plain(said, parts))

    def cut(self) -> None:
        """Close the socket under whoever waits on it."""
        sock: socket.socket | None = getattr(self._connection, "sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def headers(parts: SplitResult) -> dict[str, str]:
    """Of a POST of JSON to an address; a user and a password in it are sent as such, and not looked up as a host."""
    found = {"Content-Type": "application/json", "User-Agent": "offload"}
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        found["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
    return found


def _plain(said: str, parts: SplitResult) -> str:
    """The first characters of an answer, on one line; nothing where it repeats the address."""
    secrets = [part for part in (parts.path.strip("/"), parts.query, parts.password) if part]
    if any(part in said for secret in secrets for part in (secret, secret.rpartition("/")[2]) if part):
        return ""
    return "".join(c if c.isprintable() else " " for c in said)[:MOST_SAID].strip()


class Apprise:
    """Is told through the extra `notify`."""

    def __init__(self, name: str, environment: Mapping[str, str] = os.environ) -> None:
        self.name = name
        self._environment = environment
        self._service: Any = None

    @property
    def host(self) -> str:
        """The service; the host in such an address is often part of the secret."""
        scheme, colon, _ = self._environment.get(self.name, "").partition("://")
        return scheme if colon and scheme.isalnum() else ""

    def lacks(self) -> str:
        """The package, or an address that it knows; loading all that it knows takes seconds."""
        if find_spec("apprise") is None:
            return "apprise is not installed"
        if why := _unset(self.name, self._environment):
            return why
        for logger in ("apprise", "urllib3", "requests"):  # at debug they write addresses
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        import apprise

        self._service = apprise.Apprise()
        known = self._service.add(self._environment[self.name].strip())
        return "" if known else f"{self.name} holds no address that apprise knows"

    def tell(self, text: str) -> Answer:
        """Hand it to apprise, which says only whether it was taken."""
        taken = self._service.notify(title="Offload", body=text)
        return Answer(bool(taken), "taken" if taken else "not taken")

    def cut(self) -> None:
        """It ends by its own timeouts, which are of seconds too."""


def _unset(name: str, environment: Mapping[str, str]) -> str:
    return "" if environment.get(name, "").strip() else f"{name} is not set"
