"""`offload api`: where it listens, and what it refuses to."""

from __future__ import annotations

import gc
import signal
import socket
from ipaddress import ip_address

import structlog
import uvicorn

from api.http.app import create_app
from api.http.heads import Heads
from api.use_cases.pool import Pool
from tasks.errors import PoolError, UsageError
from tasks.ledger import api_keys

#: seconds an idle connection is kept; more than clients keep theirs
KEEP_ALIVE_S = 75
#: seconds that requests under way get when the server stops
GRACE_S = 10

log = structlog.get_logger(__name__)


def serve(pool: Pool, address: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM. Raises UsageError where it may not listen there, PoolError where it cannot."""
    is_open = pool.settings.api_key is None and not api_keys.any_made(pool.db)
    if is_open and not is_loopback(address):
        raise UsageError(f"without keys the API listens on this machine only, not on {address}: offload keys create")
    sock = _listen(address, port)
    url = f"http://{address if ':' not in address else f'[{address}]'}:{sock.getsockname()[1]}"
    log.info("the API is up", url=url, keys="none yet: open to this machine" if is_open else "needed")
    config = uvicorn.Config(
        create_app(pool),
        http=Heads,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    for wanted in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them once more when it has stopped in order
        signal.signal(wanted, lambda *_: None)
    gc.collect()
    gc.freeze()  # the libraries' objects live as long as the process: nobody need look through them again
    uvicorn.Server(config).run(sockets=[sock])


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _listen(address: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        # with its protocol: asyncio turns Nagle's algorithm off only where it knows that it speaks TCP, and with it on,
        # each answer on a kept connection waits 40 ms for the client's delayed acknowledgement
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(1024)
    except OSError as error:
        raise PoolError(f"the API cannot listen on {address}:{port}: {error.strerror or error}") from None
    return sock
