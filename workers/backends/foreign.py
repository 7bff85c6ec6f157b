"""The border: what aiohttp, httpx and the operating system raise becomes a CallError, only here."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import httpx

from tasks.errors import CallError, Offline, Transient
from workers.backends.border import AddressOutOfReach


@contextmanager
def foreign_errors(name: str) -> Iterator[None]:
    """The border: what aiohttp, httpx and the operating system raise inside becomes a CallError."""
    try:
        yield
    except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
        raise _mapped(name, error) from None  # foreign texts may quote what was sent


def _mapped(name: str, error: BaseException) -> CallError:
    """The CallError for a foreign one.

    The transport's own mapping is looked through, because it calls a refused and a reset connection alike
    `httpx.ConnectTimeout`.
    """
    while isinstance(error, httpx.HTTPError) and error.__cause__ is not None:
        error = error.__cause__
    match error:
        case aiohttp.ClientConnectorError() if isinstance(error.os_error, AddressOutOfReach):
            return Offline("address_out_of_reach", f"{name}: its address lies beyond the reach it is declared with")
        case aiohttp.ConnectionTimeoutError():
            return Offline("connect_timeout", f"{name}: no connection in time")
        case aiohttp.ClientConnectorDNSError():
            return Offline("no_address", f"{name}: its host name has no address")
        case aiohttp.ClientSSLError():
            return Offline("tls_failed", f"{name}: no TLS connection; check its certificate")
        case aiohttp.ClientConnectorError() if error.os_error.errno == errno.ECONNREFUSED:
            return Offline("refused", f"{name}: nothing listens at its address")
        case aiohttp.ClientConnectorError():
            return Offline("no_route", f"{name}: its address cannot be reached")
        case aiohttp.ClientPayloadError() if not _was_reset(error):
            return Transient("incomplete", f"{name}: the connection closed in the middle of the reply")
        case aiohttp.ClientResponseError():
            return Transient("not_http", f"{name}: the reply is no HTTP")
    return Transient("reset", f"{name}: the connection broke")


def _was_reset(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConnectionError):
        cause = cause.__cause__
    return cause is not None
