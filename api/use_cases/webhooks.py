"""Tells configured addresses the end of batches of files, as OpenAI does (Standard Webhooks).

At least once: whoever dies between telling and noting it leaves a lease, after which it is told again, under the same
`webhook-id`. Nobody is told who is not in the configuration, no redirect is followed, and no private address is asked
unless the configuration says so: the address is looked up once, judged, and that one is connected to.

Source: shared/contracts/openai-batch.md, "Webhooks"; the Standard Webhooks specification.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

import orjson
import structlog

from api.use_cases import openai_views as views
from api.use_cases.pool import Pool
from tasks.ledger import api_batches
from tasks.ledger.api_batches import Seen
from tasks.registry import WebhookTarget

#: seconds between two looks
LOOK_S = 1.0
#: seconds for one delivery, and for which a batch is one process's to tell: several deliveries
DELIVERY_S, LEASE_S = 10.0, 60.0
#: seconds before the second try; doubles up to the most
AGAIN_FIRST_S, AGAIN_MOST_S = 5.0, 3_600.0
#: tries, over about a day
TRIES = 32

log = structlog.get_logger(__name__)


class Webhooks(threading.Thread):
    """One a process; `stop` it."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(name="webhooks", daemon=True)
        self._pool = pool
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End it; what is due is told by whoever starts next."""
        self._stopping.set()

    def run(self) -> None:
        targets = self._pool.registry.api.webhooks
        if not targets:
            return
        for why in filter(None, (lacks(target, os.environ) for target in targets)):
            log.warning("a webhook will not be told", why=why)
        while not self._stopping.wait(LOOK_S):
            try:
                while not self._stopping.is_set() and self._tell_one():
                    pass
            except Exception as error:  # the ledger is away, say: the next look finds everything again
                log.error("webhooks were not sent", error=type(error).__name__)

    def _tell_one(self) -> bool:
        seen = api_batches.to_tell(self._pool.db, LEASE_S)
        if seen is None:
            return False
        event = f"batch.{views.status(seen)}"
        knows = set(seen.api.told)
        wanted = [t for t in self._pool.registry.api.webhooks if event in t.events and t.url_env not in knows]
        for target in wanted:
            if why := deliver(target, event, seen, os.environ):
                log.warning("a webhook was not taken", batch=seen.api.id, target=target.url_env, why=why)
            else:
                knows.add(target.url_env)
        left = [t for t in wanted if t.url_env not in knows]
        again = min(AGAIN_MOST_S, AGAIN_FIRST_S * 2 ** min(seen.api.tries, 20)) if left else None
        api_batches.told(self._pool.db, seen.api.id, sorted(knows), again if seen.api.tries < TRIES else None)
        return True


def deliver(target: WebhookTarget, event: str, seen: Seen, environment: Mapping[str, str]) -> str:
    """Tell one address; empty, or why it was not taken, without the address."""
    if why := lacks(target, environment):
        return why
    parts, key = urlsplit(environment[target.url_env].strip()), secret(environment[target.secret_env])
    body = payload(event, seen)
    headers = signed(f"wh_{seen.api.id}_{event}", int(time.time()), body, key)
    try:
        status = _post(parts, body, headers, private=target.private)
    except PermissionError:
        return "its address is private; say private: true where that is meant"
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: the address is none after all
        return getattr(error, "strerror", None) or type(error).__name__
    return "" if 200 <= status < 300 else f"HTTP {status}"


def lacks(target: WebhookTarget, environment: Mapping[str, str]) -> str:
    """What of the address or the secret is missing or wrong, in words; empty where nothing is."""
    for name in (target.url_env, target.secret_env):
        if not environment.get(name, "").strip():
            return f"{name} is not set"
    with suppress(ValueError):
        parts = urlsplit(environment[target.url_env].strip())
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            try:
                secret(environment[target.secret_env])
            except ValueError:
                return f"{target.secret_env} holds no secret: whsec_ and base64"
            return ""
    return f"{target.url_env} holds no http(s) address"


def payload(event: str, seen: Seen) -> bytes:
    """The body: which batch, and nothing of what was asked or answered."""
    ended = (seen.row.finished_at if seen.row is not None else None) or seen.api.failed_at or seen.api.cancelled_at
    what = {"id": f"evt_{seen.api.id.removeprefix('batch_')}", "object": "event", "created_at": int(ended or 0)}
    return orjson.dumps({**what, "type": event, "data": {"id": seen.api.id}})


def secret(text: str) -> bytes:
    """The key of a secret; raises ValueError."""
    stripped = text.strip()
    if not stripped.startswith("whsec_"):
        raise ValueError("no secret")
    try:
        return base64.b64decode(stripped.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise ValueError("no base64") from None


def signed(id_: str, at: int, body: bytes, key: bytes) -> dict[str, str]:
    """The headers of the Standard Webhooks specification. at: unix seconds."""
    mac = hmac.new(key, f"{id_}.{at}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": id_,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
        "content-type": "application/json",
        "user-agent": "offload",
        "connection": "close",
    }


def _post(parts: SplitResult, body: bytes, headers: Mapping[str, str], *, private: bool) -> int:
    """POST it; the status. Raises PermissionError for an address that may not be asked."""
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    connection = http.client.HTTPConnection(host, port, timeout=DELIVERY_S)
    with closing(connection):
        connection.sock = _connected(host, port, private=private)
        if parts.scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(connection.sock, server_hostname=host)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path, body, {**headers, "host": parts.netloc.rpartition("@")[2]})
        return connection.getresponse().status


def _connected(host: str, port: int, *, private: bool) -> socket.socket:
    """A socket to the first address of a name; unless private ones may be asked, all of its addresses are public."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not private and not all(ip_address(str(info[4][0]).partition("%")[0]).is_global for info in found):
        raise PermissionError
    family, kind, proto, _, where = found[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.settimeout(DELIVERY_S)
        sock.connect(where)
    except BaseException:
        sock.close()
        raise
    return sock
