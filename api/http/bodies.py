"""Bodies that are JSON objects of a known form: read off the event loop, and described as FastAPI describes its own."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from api.http.direct import off_loop
from api.http.errors import ApiError, invalid
from tasks.lines import few_fields

B = TypeVar("B", bound="Body")


class Body(BaseModel):
    """A JSON object of which no value is repeated in an error, and every value can be written as JSON again."""

    model_config = ConfigDict(hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, data: Any) -> Any:
        return few_fields(data)

    @field_validator("*", mode="before")
    @classmethod
    def _can_be_written(cls, value: Any) -> Any:
        """Python reads more as JSON than can be sent on: integers beyond 64 bits, halves of characters."""
        try:
            orjson.dumps(value)
        except orjson.JSONEncodeError:
            raise PydanticCustomError("value_error", "holds a number or a character that JSON cannot carry") from None
        return value


async def read(request: Request, kind: type[B]) -> B:
    """The body of a request; raises ApiError for its first fault."""
    raw = await request.body()
    return await off_loop(len(raw), _read, raw, kind)


def _read(raw: bytes, kind: type[B]) -> B:
    try:
        return kind.model_validate(json.loads(raw))
    except ValidationError as error:
        first: Any = error.errors(include_input=False, include_url=False)[0]
        raise invalid(first) from None
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not JSON.", code="invalid_json") from None


def described(kind: type[Body], path: str) -> dict[str, Any]:
    """What the OpenAPI document says of a path whose body `read` reads."""
    here = f"#/paths/{path.replace('/', '~1')}/post/requestBody/content/application~1json/schema/$defs/{{model}}"
    content = {"application/json": {"schema": kind.model_json_schema(ref_template=here)}}
    return {"requestBody": {"required": True, "content": content}}
