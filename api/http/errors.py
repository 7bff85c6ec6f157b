"""Errors as the official clients understand them: OpenAI's shape, Anthropic's below /v1/messages, and a request id.

Nothing of a request is repeated in one: no path of a file, no prompt, no key.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnection
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tasks.errors import ConfigError, Conflict, NotFound, OffloadError, QueueFull, UsageError

#: HTTP status -> OpenAI's type of error, and Anthropic's
TYPES = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("invalid_request_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    408: ("invalid_request_error", "timeout_error"),
    409: ("conflict_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "invalid_request_error"),
    422: ("invalid_request_error", "invalid_request_error"),
    431: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_error"),
    500: ("server_error", "api_error"),
    502: ("server_error", "api_error"),
    503: ("server_error", "overloaded_error"),
}
#: of a client that has gone; nobody reads it
GONE = 499
#: seconds after which a client should ask again while the ledger is away
AWAY_S = 2
#: likewise, while its key has as many unfinished jobs as it may have
FULL_S = 30

log = structlog.get_logger(__name__)


class ApiError(Exception):
    """Something the caller should know. headers: of the reply."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})
        if status == 409:
            self.headers["x-should-retry"] = "false"  # the official clients would try again


def not_found(what: str, id_: str) -> ApiError:
    """There is none, or it is another's: nobody can tell which."""
    return ApiError(404, f"No such {what}: {id_[:80]!r}", code="not_found")


def reply(request: Request, error: ApiError) -> JSONResponse:
    """The error as a reply, in the shape that the path's clients know."""
    is_anthropics = request.url.path.startswith("/v1/messages")
    shown = anthropics(request, error) if is_anthropics else {"error": inner(error)}
    return JSONResponse(shown, error.status, error.headers)


def anthropics(request: Request, error: ApiError) -> dict[str, Any]:
    """What Anthropic's clients find in a reply that is an error."""
    said = {"type": _types(error)[1], "message": error.message}
    request_id = request.scope.get("state", {}).get("request_id", "")
    return {"type": "error", "error": said, "request_id": request_id}


def inner(error: ApiError) -> dict[str, Any]:
    """What OpenAI's clients find under `error`."""
    return {"message": error.message, "type": _types(error)[0], "param": error.param, "code": error.code}


def _types(error: ApiError) -> tuple[str, str]:
    return TYPES.get(error.status, TYPES[500 if error.status >= 500 else 400])


def install(app: FastAPI) -> None:
    """Have every error answered so."""
    app.add_exception_handler(ApiError, lambda request, error: reply(request, error))
    app.add_exception_handler(HTTPException, _http)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _invalid)  # type: ignore[arg-type]
    app.add_exception_handler(OffloadError, _ours)  # type: ignore[arg-type]
    app.add_exception_handler(DataError, _unkeepable)
    for error in (DBAPIError, NoConnection):
        app.add_exception_handler(error, _away)
    app.add_exception_handler(OSError, _full)  # type: ignore[arg-type]
    app.add_exception_handler(ClientDisconnect, lambda request, error: Response(status_code=GONE))
    app.add_exception_handler(Exception, _unexpected)


def _http(request: Request, error: HTTPException) -> JSONResponse:
    words = {404: "There is no such path.", 405: "This path does not take this method."}
    message = words.get(error.status_code, str(error.detail))
    return reply(request, ApiError(error.status_code, message, headers=error.headers))


def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    return reply(request, invalid(error.errors()[0]))


def invalid(first: Mapping[str, Any]) -> ApiError:
    """The first of pydantic's faults; its words hold no value of the request."""
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    code = "invalid_type" if first["type"].endswith(("_type", "_parsing")) else "invalid_value"
    code = "missing_required_parameter" if first["type"] == "missing" else code
    param = ".".join(where) or None
    message = f"{param}: {first['msg']}" if param else first["msg"]
    return ApiError(400, message, code=code, param=param)


def _ours(request: Request, error: OffloadError) -> JSONResponse:
    match error:
        case NotFound():
            return reply(request, ApiError(404, str(error), code="not_found"))
        case Conflict():
            return reply(request, ApiError(409, str(error), code="conflict"))
        case QueueFull():
            wait = {"retry-after": str(FULL_S)}
            return reply(request, ApiError(429, str(error), code="queue_limit", headers=wait))
        case ConfigError():  # its words name files of this machine
            pass
        case UsageError():
            return reply(request, ApiError(400, str(error)))
    log.error("a request failed", error=type(error).__name__, words=str(error))
    return reply(request, ApiError(503, "The pool cannot do this now.", headers={"retry-after": str(AWAY_S)}))


def _unkeepable(request: Request, error: Exception) -> JSONResponse:
    log.warning("the ledger cannot keep what a request holds", error=type(error).__name__)
    return reply(request, ApiError(400, "The request holds a character or a number that cannot be kept."))


def _away(request: Request, error: Exception) -> JSONResponse:
    log.error("a request failed", error=type(error).__name__)
    return reply(request, ApiError(503, "The ledger does not answer.", headers={"retry-after": str(AWAY_S)}))


def _full(request: Request, error: OSError) -> JSONResponse:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise error
    log.error("a request failed: the disk of OFFLOAD_HOME, or of temporary files, is full")
    return reply(request, ApiError(503, "The disk of this server is full.", headers={"retry-after": str(AWAY_S)}))


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("a request failed", error=type(error).__name__)
    answer = reply(request, ApiError(500, "Something is wrong with this server; its log says what."))
    answer.headers["x-request-id"] = request.scope.get("state", {}).get("request_id", "")  # it is sent past Limits
    return answer
