"""One question to a model server with the standard library's HTTP client: for a program that must start at once.

It stands outside backends/ because importing that package loads pydantic and aiohttp.  It sends the body that a
worker would send (a test holds them equal), but for the stream: the answer comes whole.  Addresses are held against
the server's reach as in backends/border.py: of a name that leads further, even by one of its addresses, nothing is
used.  There is no proxy and no redirect, and no message holds what was sent or answered.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import SplitResult, urlsplit

from tasks.errors import CallError, Misconfigured, Offline, Permanent, Transient
from tasks.privacy import Reach, is_cloud_name, ollama_name, reach_of_address, within
from workers.straight_bodies import Question, Reply, embedding, embedding_reply, text, text_reply

#: seconds for each step of a probe
PROBE_S = 5.0
#: bytes of one reply
MAX_REPLY_BYTES = 64 * 1024 * 1024
_ADVICE = {
    400: "it does not take the request; is the prompt longer than the model's context?",
    401: "check the provider's API key",
    402: "its account has no credit left",
    403: "check the provider's API key",
    404: "it does not have this model, or the provider's url is wrong",
    429: "it takes no more at the moment",
    503: "it takes no more at the moment",
}


@dataclass(frozen=True, slots=True)
class Server:
    """A provider's server, of kind `ollama` or `openai`. reach: as declared. api_key_env: where its key is."""

    name: str
    kind: str
    url: str
    reach: Reach
    api_key_env: str | None = None


def ask(server: Server, question: Question) -> Reply:
    """Send one question, wait for its whole answer; raises CallError."""
    began = time.monotonic()
    _must_be_local(server, question)
    path, body = (embedding if question.kind == "embed" else text)(server.kind, question)
    left = question.total_s - (time.monotonic() - began)
    status, raw = _exchange(server, "POST", path, json.dumps(body).encode(), question.connect_s, left)
    if status != 200:
        raise _refusal(server, status)
    value = _object(server, raw)
    if value.get("remote_host"):
        raise _elsewhere(server, question.model)
    reply = (embedding_reply if question.kind == "embed" else text_reply)(server.kind, server.name, value)
    reply.duration_ms = (time.monotonic() - began) * 1000.0
    return reply


def probe(server: Server) -> None:
    """Pass where the server answers; raises CallError. Nothing is generated and no model is loaded."""
    status = 0
    for path in ("/api/version", "/api/tags") if server.kind == "ollama" else ("/models",):
        status, _ = _exchange(server, "GET", path, b"", PROBE_S, PROBE_S)
        if status == 200:
            return
    raise _refusal(server, status)


def _must_be_local(server: Server, question: Question) -> None:
    """A model that runs on somebody else's machine can have any name (`ollama cp`), so it is looked up.

    An Ollama may stand behind kind `openai` too; other servers know no /api/tags.
    """
    asked = question.model
    if is_cloud_name(asked):
        raise _elsewhere(server, asked)
    root = replace(server, url=server.url.rstrip("/").removesuffix("/v1"))
    status, raw = _exchange(root, "GET", "/api/tags", b"", question.connect_s, 2 * question.connect_s)
    if status != 200 and server.kind == "ollama":
        raise _refusal(server, status)
    rows = _rows(raw) if status == 200 else []
    there = [bool(row.get("remote_host")) for row in rows if ollama_name(str(row.get("name"))) == ollama_name(asked)]
    if any(there):
        raise _elsewhere(server, asked)
    if not there and server.kind == "ollama":  # it may know it by a name that is not understood here
        raise Misconfigured("model_not_found", f"{server.name} does not list {asked}; nothing was sent")


def _rows(raw: bytes) -> list[dict[str, Any]]:
    """The models that a reply of /api/tags lists; none of another reply."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return []
    rows = value.get("models") if isinstance(value, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _elsewhere(server: Server, model: str) -> CallError:
    return Permanent("not_local", f"{server.name}: {model} does not run on that machine; nothing is left to it")


def _refusal(server: Server, status: int) -> CallError:
    advice = "it sends elsewhere, and that is not followed" if 300 <= status < 400 else _ADVICE.get(status, "")
    return CallError(f"http_{status}", f"{server.name} answered {status}{f': {advice}' if advice else ''}")


def _object(server: Server, raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise Transient("not_json", f"{server.name}: the reply is not JSON, or was cut") from None
    if not isinstance(value, dict):
        raise Transient("malformed", f"{server.name}: the reply has an unexpected shape")
    if value.get("error"):
        raise Transient("midstream_error", f"{server.name} answered with an error")
    return value


def _exchange(
    server: Server, method: str, path: str, body: bytes, connect_s: float, total_s: float
) -> tuple[int, bytes]:
    """(status, body) of one request over a connection of its own."""
    until = time.monotonic() + total_s
    parts = urlsplit(server.url)
    with _foreign_errors(server), closing(_connected(server, parts, connect_s)) as sock:
        connection = http.client.HTTPConnection(parts.hostname or "", _port(parts))
        connection.sock = sock  # one whose address was checked: the client makes none of its own
        sock.settimeout(_left(until))
        connection.request(method, parts.path.rstrip("/") + path, body or None, _headers(server, parts))
        response = connection.getresponse()
        return response.status, _read(server, response, sock, until)


def _read(server: Server, response: http.client.HTTPResponse, sock: socket.socket, until: float) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := response.read(1 << 16):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_REPLY_BYTES:
            raise Permanent("output_too_large", f"{server.name}: the reply is over {MAX_REPLY_BYTES >> 20} MiB")
        if not response.isclosed():  # at the body's end it closes the socket as well
            sock.settimeout(_left(until))
    return b"".join(chunks)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _headers(server: Server, parts: SplitResult) -> dict[str, str]:
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else str(parts.hostname)
    headers = {
        "Host": host if parts.port is None else f"{host}:{parts.port}",
        "Content-Type": "application/json",
        "Connection": "close",
    }
    key = (os.environ.get(server.api_key_env) or "").strip() if server.api_key_env else ""
    if key and not (key.isascii() and key.isprintable()):
        raise Permanent("unauthorized", f"{server.name}: {server.api_key_env} holds no key that could be sent")
    return headers | ({"Authorization": f"Bearer {key}"} if key else {})


def _connected(server: Server, parts: SplitResult, seconds: float) -> socket.socket:
    """A connection to the server's host, at an address that is within its reach."""
    try:
        found = socket.getaddrinfo(parts.hostname, _port(parts), type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        raise Offline("no_address", f"{server.name}: its host name has no address") from None
    if not all(within(reach_of_address(str(where[0])), server.reach) for *_, where in found):
        words = f"{server.name}: its address lies beyond the reach it is declared with; nothing was sent"
        raise Offline("address_out_of_reach", words)
    failed = Offline("no_route", f"{server.name}: its address cannot be reached")
    for family, kind, protocol, _, where in found:
        sock = socket.socket(family, kind, protocol)
        sock.settimeout(seconds)
        try:
            sock.connect(where)
            return _with_tls(sock, parts)
        except ConnectionRefusedError:
            failed = Offline("refused", f"{server.name}: nothing listens at its address")
        except TimeoutError:
            failed = Offline("connect_timeout", f"{server.name}: no connection in time")
        except OSError as error:
            if type(error).__module__ == "ssl":
                failed = Offline("tls_failed", f"{server.name}: no TLS connection; check its certificate")
        sock.close()
    raise failed


def _with_tls(sock: socket.socket, parts: SplitResult) -> socket.socket:
    if parts.scheme != "https":
        return sock
    import ssl  # only here: loading the certificates takes a while

    return ssl.create_default_context().wrap_socket(sock, server_hostname=parts.hostname)


@contextmanager
def _foreign_errors(server: Server) -> Iterator[None]:
    """What the standard library raises becomes a CallError; its own words may quote what was sent."""
    try:
        yield
    except TimeoutError:
        raise Transient("total_timeout", f"{server.name}: no answer in time") from None
    except http.client.HTTPException:
        raise Transient("not_http", f"{server.name}: the reply is no HTTP, or was cut") from None
    except OSError:
        raise Transient("reset", f"{server.name}: the connection broke") from None
