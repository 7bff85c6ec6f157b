"""What people write first: a call handed on as it is, by the same libraries, and nothing done with it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response

LIMIT = 0  #: connections to the server; 0 for any number


@asynccontextmanager
async def lives(app: FastAPI) -> AsyncIterator[None]:
    """One session for all calls."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=LIMIT)) as session:
        app.state.session = session
        yield


app = FastAPI(lifespan=lives)


@app.post("/v1/chat/completions")
async def chat(request: Request) -> Response:
    """Hand it on; the answer as it comes."""
    body = await request.body()
    url = f"{sys.argv[2]}/v1/chat/completions"
    async with request.app.state.session.post(url, data=body, headers={"content-type": "application/json"}) as reply:
        return Response(await reply.read(), reply.status, media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_config=None, access_log=False)
