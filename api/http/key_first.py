"""Routes whose body FastAPI reads: who asks is known before."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.responses import Response


class KeyFirst(APIRoute):
    """A route that takes nothing of a body from somebody who may not send it.

    FastAPI itself reads a form or a JSON body, and stores its files, before it looks at what the route depends on.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler; what the route depends on is who asks, and nothing else."""
        answer = super().get_route_handler()
        checks: list[Any] = [dependant.call for dependant in self.dependant.dependencies]

        async def known(request: Request) -> Response:
            for check in checks:
                request.state.caller = await check(request)
            return await answer(request)

        return known
