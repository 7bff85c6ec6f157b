"""/v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models: answered while the client waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ParamSpec, TypeVar

import orjson
import structlog
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse
from starlette import types as asgi
from starlette.middleware.exceptions import ExceptionMiddleware

from api.http import answers
from api.http.callers import Caller, needs
from api.http.errors import GONE, ApiError, inner, not_found
from api.use_cases import direct
from api.use_cases.direct import Telling
from api.use_cases.pool import Pool
from tasks.errors import BadOutput, Busy, CallError, LineFault, Misconfigured, Offline, OutOfReach, Permanent
from tasks.ledger.api_keys import Scope
from tasks.states import JobState
from workers.backends import Delta
from workers.direct import Direct, Given

router = APIRouter(prefix="/v1", tags=["direct"])

_submitter = needs(Scope.SUBMIT)
Submitter = Annotated[Caller, Depends(_submitter)]
Reader = Annotated[Caller, Depends(needs(Scope.READ))]
log = structlog.get_logger(__name__)

#: bytes of a body beyond which it is judged on another thread, so that nobody else waits for it
LARGE = 64 * 1024

#: error codes -> (HTTP status, code in OpenAI's words)
CODES = {
    "context_exceeded": (400, "context_length_exceeded"),
    "prompt_too_long": (400, "context_length_exceeded"),
    "model_not_found": (404, "model_not_found"),
    "no_provider": (503, "no_provider"),
}

#: what is answered while somebody waits
STRAIGHT = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})

T = TypeVar("T")
P = ParamSpec("P")


class Straight:
    """ASGI middleware: those paths' requests are answered here, as FastAPI, which describes them, has nothing to do.

    handlers: of the application's exceptions.
    """

    def __init__(self, app: asgi.ASGIApp, handlers: Mapping[Any, asgi.ExceptionHandler]) -> None:
        self._app = app
        self._here = ExceptionMiddleware(_straight, {kind: f for kind, f in handlers.items() if kind is not Exception})

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        is_here = scope["type"] == "http" and scope["path"] in STRAIGHT and scope["method"] == "POST"
        await (self._here if is_here else self._app)(scope, receive, send)


async def _straight(scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
    request = Request(scope, receive, send)
    response = await _answered(request, await _submitter(request), scope["path"])
    await response(scope, receive, send)


@router.post("/chat/completions")
async def chat(request: Request, caller: Submitter) -> Response:
    """A chat, streamed or not."""
    return await _answered(request, caller, "/v1/chat/completions")


@router.post("/completions")
async def completions(request: Request, caller: Submitter) -> Response:
    """A completion of a prompt, streamed or not."""
    return await _answered(request, caller, "/v1/completions")


@router.post("/embeddings")
async def embeddings(request: Request, caller: Submitter) -> Response:
    """Vectors of texts."""
    return await _answered(request, caller, "/v1/embeddings")


@router.post("/responses")
async def responses(request: Request, caller: Submitter) -> Response:
    """Answered in batches only."""
    raise ApiError(
        404, "/v1/responses is answered in batches only; here there is /v1/chat/completions.", code="not_here"
    )


@router.get("/models")
def models(request: Request, caller: Reader) -> dict[str, Any]:
    """What `model` may be: classes, the models they serve, categories, and auto."""
    return {"object": "list", "data": [_model(name) for name in _models(request.app.state.pool)]}


@router.get("/models/{name:path}")
def model(request: Request, caller: Reader, name: str) -> dict[str, Any]:
    """One of them."""
    if name not in _models(request.app.state.pool):
        raise not_found("model", name)
    return _model(name)


def _models(pool: Pool) -> list[str]:
    registry = pool.registry
    classes = [name for name, model_class in registry.classes.items() if model_class.serve]
    categories = [f"category:{c.name}" for c in registry.categories.values() if c.model_class in classes]
    return ["auto", *classes, *sorted(registry.models), *categories]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "offload"}


async def _answered(request: Request, caller: Caller, path: str) -> Response:
    asked = await read(request, caller, path)
    if asked.stream and path != "/v1/embeddings":
        return await _streamed(request, asked, path)
    given = await unless_gone(request, run(request, asked))
    if given is None:
        return Response(status_code=GONE)
    found = answers.embeddings(given, asked.base64) if path == "/v1/embeddings" else answers.whole(given, path)
    return Response(orjson.dumps(found), media_type="application/json", headers=headers(asked, given))


async def read(request: Request, caller: Caller, path: str) -> direct.Request:
    """The request that a body of OpenAI's makes; raises ApiError for its first fault, or where it is refused."""
    body, size = await body_of(request)
    return await judged(request, caller, path, body, size)


async def body_of(request: Request) -> tuple[dict[str, Any], int]:
    """The body, and its size in bytes; raises ApiError for what is no JSON object."""
    raw = await request.body()
    try:
        body = await off_loop(len(raw), orjson.loads, raw)
    except orjson.JSONDecodeError:
        raise ApiError(400, "The body is not JSON.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_type")
    return body, len(raw)


async def off_loop(size: int, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """What the work on a body of this size comes to: on another thread where it is LARGE."""
    return await asyncio.to_thread(work, *given, **named) if size > LARGE else work(*given, **named)


async def judged(request: Request, caller: Caller, path: str, body: dict[str, Any], size: int) -> direct.Request:
    """The same of a body that was read."""
    found = await checked(request, caller, path, body, size)
    if found.job.route.state is JobState.REFUSED:
        telling(request).refused(found.job)
        words = f"Policy and privacy leave nowhere to run this: {found.job.route.words}"
        raise ApiError(403, words, code="refused")
    return found


async def checked(request: Request, caller: Caller, path: str, body: dict[str, Any], size: int) -> direct.Request:
    """The same, whether it may be sent anywhere or not."""
    app = request.headers.get("x-offload-app")
    said = caller.said(app=app if app and len(app) <= 64 else None)
    found = await off_loop(size, direct.read, path, body, request.app.state.pool, said)
    if isinstance(found, list):
        raise _fault(found[0])
    return found


def _fault(fault: LineFault) -> ApiError:
    param = fault.field.removeprefix("body.") or None
    code = "model_not_found" if param == "model" and "is not configured" in fault.reason else "invalid_value"
    message = f"{param}: {fault.reason}" if param else fault.reason
    return ApiError(404 if code == "model_not_found" else 400, message, code=code, param=param)


async def run(request: Request, asked: direct.Request) -> Given:
    """The answer; raises ApiError."""
    ways: Direct = request.app.state.direct
    try:
        given = await ways.ask(direct.claimed(asked.job), asked.wish)
    except CallError as error:
        raise failed(error) from None
    telling(request).keep(asked.job, given)
    return given


def failed(error: CallError) -> ApiError:
    """A call's error as HTTP has it; its words name providers and models, nothing of the request."""
    if error.code in CODES:
        status, code = CODES[error.code]
        return ApiError(status, str(error), code=code)
    match error:
        case Busy():
            wait = {"retry-after": f"{max(1, round(error.retry_after or 1))}"}
            return ApiError(429, str(error), code=error.code, headers=wait)
        case Offline():
            return ApiError(503, str(error), code=error.code, headers={"retry-after": "2"})
        case OutOfReach():
            return ApiError(403, str(error), code=error.code)
        case Permanent():
            return ApiError(400, str(error), code=error.code)
        case BadOutput() | Misconfigured():
            return ApiError(502, str(error), code=error.code)
    return ApiError(502, str(error), code=error.code)


def headers(asked: direct.Request, given: Given) -> dict[str, str]:
    """Who answered, and why it was them."""
    return _named(asked, given.asked.provider.name, given.reply.model, given.attempts)


def _named(asked: direct.Request, provider: str, model: str, attempts: int) -> dict[str, str]:
    return {
        "x-offload-provider": provider,
        "x-offload-model": plain(model),
        "x-offload-attempts": str(attempts),
        "x-offload-class": asked.job.model_class,
        "x-offload-decision": asked.job.route.decision.value,
    }


def plain(value: str) -> str:
    """A server may call its model anything, and a header is one line of ASCII."""
    return value.encode("ascii", "replace").decode().replace("\r", "?").replace("\n", "?")[:200]


# --- streams --------------------------------------------------------------------------------------------------


async def _streamed(request: Request, asked: direct.Request, path: str) -> Response:
    pieces = Pieces(request, asked)
    began = await unless_gone(request, pieces.begin())
    if began is None:
        return Response(status_code=GONE)
    stream = answers.Stream(path, pieces.model, with_usage=asked.usage)

    async def events() -> AsyncIterator[bytes]:
        yield stream.first()
        async for delta in pieces:
            yield stream.piece(delta)
        if pieces.error is not None:
            yield answers.broken(inner(pieces.error))
        elif pieces.given is not None:
            yield stream.last(pieces.given.reply)

    return Streamed(pieces, events(), pieces.headers())


class Streamed(StreamingResponse):
    """Events made of an answer's pieces; the call is closed with it, and if the client was gone before the first."""

    def __init__(self, pieces: Pieces, events: AsyncIterator[bytes], named: Mapping[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache", **named})
        self._pieces = pieces

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._pieces.aclose()


class Pieces:
    """An answer as it comes. Whoever stops reading closes the call.

    alive_s: seconds between two pieces of nothing, which show that somebody is there; None for none of them.
    """

    def __init__(self, request: Request, asked: direct.Request, alive_s: float | None = None) -> None:
        self.given: Given | None = None
        self.error: ApiError | None = None
        self._request, self._asked = request, asked
        self._provider, self._attempts = "", 0
        self._queue: asyncio.Queue[Delta | None] = asyncio.Queue()
        self._held: Delta | None = None
        self._alive_s = alive_s
        wish = replace(asked.wish, on_delta=self._queue.put_nowait, on_way=self._took)
        self._task = asyncio.get_running_loop().create_task(self._run(request, replace(asked, wish=wish)))

    async def begin(self) -> bool:
        """Wait for the first piece; raises ApiError where there is none."""
        try:
            self._held = await self._queue.get()
        except asyncio.CancelledError:
            self._task.cancel()
            raise
        if self._held is None and self.error is not None:
            raise self.error
        return True

    @property
    def model(self) -> str:
        """What the provider was asked to run."""
        job = self._asked.job
        pinned = None if job.route.escalated_from else job.model
        serve = self._request.app.state.pool.registry.serve(job.model_class, self._provider, pinned)
        return job.model_class if serve is None else str(serve.model)

    def headers(self) -> dict[str, str]:
        """Who answers, and why it is them."""
        return _named(self._asked, self._provider, self.model, self._attempts)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        alive = asyncio.get_running_loop().create_task(self._alive())
        try:
            delta = self._held
            while delta is not None:
                yield delta
                delta = await self._queue.get()
        finally:
            alive.cancel()
            await self.aclose()

    async def aclose(self) -> None:
        """Close the call, if it still runs."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _alive(self) -> None:
        while self._alive_s is not None:
            await asyncio.sleep(self._alive_s)
            self._queue.put_nowait(Delta())

    def _took(self, provider: str) -> None:
        self._provider = provider
        self._attempts += 1

    async def _run(self, request: Request, asked: direct.Request) -> None:
        try:
            self.given = await run(request, asked)
        except ApiError as error:
            self.error = error
        except Exception as error:  # a stream that just stops would look like a short answer
            log.error("a request failed", error=type(error).__name__)
            self.error = ApiError(500, "Something is wrong with this server; its log says what.")
        finally:
            self._queue.put_nowait(None)


async def unless_gone(request: Request, work: Awaitable[T]) -> T | None:
    """What comes of the work, or None when the client went away first: then the work is stopped."""
    here, is_over, is_gone = asyncio.current_task(), False, False
    assert here is not None

    def stop(_: object) -> None:
        nonlocal is_gone
        if not is_over:
            is_gone = here.cancel()

    gone = asyncio.ensure_future(_gone(request.receive))
    gone.add_done_callback(stop)
    try:
        return await work
    except asyncio.CancelledError:
        if is_gone and not here.uncancel():
            return None
        raise
    finally:
        is_over = True
        gone.cancel()


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def telling(request: Request) -> Telling:
    """Where telemetry goes."""
    found: Telling = request.app.state.telling
    return found
