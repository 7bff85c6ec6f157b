"""Where the HTTP API listens."""

from __future__ import annotations

import asyncio
import socket

from api.http import serving


def test_no_answer_waits_for_the_one_before_to_be_acknowledged() -> None:
    """A connection that the API's listener accepts has Nagle's algorithm off, by whichever event loop."""

    async def accepted() -> int:
        found = asyncio.get_running_loop().create_future()

        async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            its = writer.get_extra_info("socket")
            found.set_result(its.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = serving._listen("127.0.0.1", 0)
        async with await asyncio.start_server(handle, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            nodelay = await found
            writer.close()
        return int(nodelay)

    assert asyncio.run(accepted())
