"""How the bytes of a reply leave: at once, at a pace, or broken off."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence

from aiohttp import web

JSON = "application/json"
#: bytes of a reply that leave in one write; a longer one is written part by part, so that memory stays
#: bounded
ONE_WRITE = 1 << 20
#: seconds below which waiting for the next token is not worth a sleep
TICK_S = 0.002
_RST = struct.pack("ii", 1, 0)


def at_once(body: bytes, content_type: str, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A response whose bytes are all there."""
    return web.Response(body=body, status=status, headers={"Content-Type": content_type, **(headers or {})})


async def stream(
    request: web.BaseRequest, frames: Sequence[bytes], content_type: str, seconds: float
) -> web.StreamResponse:
    """Send frames evenly over `seconds`; with 0 in one write."""
    if not seconds and sum(map(len, frames)) <= ONE_WRITE:
        return at_once(b"".join(frames), content_type)
    response = await _begin(request, content_type)
    clock = asyncio.get_running_loop().time
    start, due = clock(), bytearray()
    for position, frame in enumerate(frames):
        if (left := start + seconds * position / len(frames) - clock()) > TICK_S:
            await response.write(bytes(due))
            due.clear()
            await asyncio.sleep(left)
        due += frame
        if len(due) > ONE_WRITE:
            await response.write(bytes(due))
            due.clear()
    await response.write(bytes(due))
    await response.write_eof()
    return response


async def broken_off(request: web.BaseRequest, body: bytes, content_type: str, hang: bool) -> web.StreamResponse:
    """Send half a body that was announced whole (or as chunks), then close, or fall silent for ever."""
    response = web.StreamResponse(headers={"Content-Type": content_type, "Content-Length": str(len(body))})
    await response.prepare(request)
    await response.write(body[: max(1, len(body) // 2)])
    if hang:
        await asyncio.Event().wait()
    if request.transport is not None:
        request.transport.close()
    return response


async def broken_stream(
    request: web.BaseRequest, frames: Sequence[bytes], content_type: str, hang: bool
) -> web.StreamResponse:
    """Send the first half of a stream's frames, then close without its end, or fall silent for ever."""
    response = await _begin(request, content_type)
    await response.write(b"".join(frames[: max(1, len(frames) // 2)]))
    if hang:
        await asyncio.Event().wait()
    if request.transport is not None:
        request.transport.close()
    return response


def reset(request: web.BaseRequest) -> web.Response:
    """Break the connection with RST, before any reply."""
    if (transport := request.transport) is not None:
        peer = transport.get_extra_info("socket")
        if peer is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
        transport.abort()
    return web.Response()


async def _begin(request: web.BaseRequest, content_type: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": content_type, "Cache-Control": "no-cache"})
    response.enable_chunked_encoding()
    await response.prepare(request)
    return response
