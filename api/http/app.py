"""The application: routers, errors, limits, and the thread that checks uploaded batches."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from fastapi import FastAPI

from api.http import batches, direct, errors, fan_outs, files, jobs, message_batches, messages, service
from api.http.callers import Callers
from api.http.limits import Limits
from api.use_cases.direct import Telling, Unusable
from api.use_cases.pool import Pool
from api.use_cases.validating import Validator
from api.use_cases.webhooks import Webhooks
from workers.direct import Direct

#: seconds between two signs of life
SIGN_S = 1.0
#: submits that are loaded at once; further ones wait for these, and nothing else does
SUBMITS = 4
#: batches whose unchanging figures are remembered
REMEMBERED = 1_000

V = TypeVar("V")


class Remembered(OrderedDict[str, V]):
    """The newest REMEMBERED values."""

    def __setitem__(self, key: str, value: V) -> None:
        super().__setitem__(key, value)
        if len(self) > REMEMBERED:
            self.popitem(last=False)


async def _touch(sign: Path) -> None:
    """Show that the event loop turns; the file is gone when the server is."""
    try:
        while True:
            with suppress(OSError):
                sign.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                sign.touch()
            await asyncio.sleep(SIGN_S)
    finally:
        with suppress(OSError):
            sign.unlink(missing_ok=True)


def create_app(pool: Pool) -> FastAPI:
    """The API over one pool."""

    @asynccontextmanager
    async def lives(app: FastAPI) -> AsyncIterator[None]:
        unusable = Unusable(pool)
        threads = (app.state.validator, app.state.telling, unusable, Webhooks(pool))
        for thread in threads:
            thread.start()
        tell = app.state.telling.tell
        app.state.direct = Direct(pool.db, pool.registry, pool.settings.node, tell, unusable.names)
        living = asyncio.create_task(_touch(pool.settings.api_sign))
        yield
        living.cancel()
        await app.state.direct.aclose()
        app.state.submits.shutdown(wait=False, cancel_futures=True)
        for thread in threads:
            thread.stop()
        app.state.metrics.close()

    app = FastAPI(title="Offload", version=version("offload"), lifespan=lives, docs_url=None, redoc_url=None)
    app.state.pool = pool
    app.state.callers = Callers(pool)
    app.state.validator = Validator(pool)
    app.state.telling = Telling(pool)
    app.state.metrics = service.Metrics(pool)
    app.state.submits = ThreadPoolExecutor(SUBMITS, "submit")
    app.state.tokens = Remembered[tuple[int, int]]()
    errors.install(app)
    for router in (direct.router, messages.router, message_batches.router, files.router):
        app.include_router(router)
    for router in (batches.router, jobs.router, fan_outs.router, service.router):
        app.include_router(router)
    app.add_middleware(direct.Straight, handlers=app.exception_handlers)
    app.add_middleware(Limits)  # the outermost
    return app
