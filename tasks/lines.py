"""A job line in the pool's own form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError, PydanticKnownError

Text = Annotated[str, StringConstraints(min_length=1)]
TouchedPath = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"\S")]
LineId = Annotated[str, StringConstraints(min_length=1, max_length=256)]


#: fields of an object, known and unknown; of more it is said once, and not of each that it is unknown
MOST_FIELDS = 100
#: texts to embed of one line
MOST_TEXTS = 2048


def few_fields(data: Any) -> Any:
    """The same, unless it is an object of more than MOST_FIELDS fields."""
    if isinstance(data, dict) and len(data) > MOST_FIELDS:
        raise PydanticCustomError("too_many_fields", "has more than {most} fields", {"most": MOST_FIELDS})
    return data


def few_texts(data: Any) -> Any:
    """The same, unless it is a list that is too long; pydantic would tell every fault of its items first."""
    if isinstance(data, list) and len(data) > MOST_TEXTS:
        said = {"field_type": "List", "max_length": MOST_TEXTS, "actual_length": len(data)}
        raise PydanticKnownError("too_long", said)
    return data


#: several texts to embed
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]

#: what a producer calls its program; it is a key of the rollups
App = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x20\x7f](.*[^\x00-\x20\x7f])?$")]


class Line(BaseModel):
    """Strict: unknown fields are errors, and errors never show values."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, data: Any) -> Any:
        return data if cls.model_config.get("extra") == "allow" else few_fields(data)


class Message(Line):
    """One message of a chat, in OpenAI's shape."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    # what an answer's message has besides: clients send it back as it came, and it is not sent on
    reasoning_content: str | None = Field(None, exclude=True)
    refusal: None = Field(None, exclude=True)
    annotations: Annotated[list[Any], Field(max_length=0)] | None = Field(None, exclude=True)
    audio: None = Field(None, exclude=True)
    function_call: None = Field(None, exclude=True)
    parsed: Any = Field(None, exclude=True)  #: the official package reads JSON into it


#: what a content may be made of, as OpenAI documents it; each holds its value in a field of its own name
PARTS = ("text", "refusal", "image_url", "input_audio", "file")
#: what may stand beside that: it says nothing to a local model
BESIDE = ("type", "cache_control")
#: what the values that are objects have: the data, and what says more of it
DATA = {"image_url": ("url", "detail"), "input_audio": ("data", "format"), "file": ("file_data", "filename")}


def part_fault(part: Mapping[str, Any]) -> str | None:
    """Why a part of a content is not taken, if so: whatever names an address would be fetched by the server."""
    kind = part.get("type")
    if kind not in PARTS:
        named = f" of type {kind}" if isinstance(kind, str) and re.fullmatch("[a-z_]{1,40}", kind) else ""
        return f"a part{named} is not taken; there are {', '.join(PARTS)}"
    if not part.keys() <= {kind, *BESIDE}:
        return f"a part of type {kind} has type and {kind}, nothing else"
    value = part.get(kind)
    if kind not in DATA:
        return None if isinstance(value, str) else f"a part of type {kind} has a text"
    data, more = DATA[kind]
    if isinstance(value, dict):
        if not value.keys() <= {data, more}:
            return f"{kind} has {data} and {more}, nothing else"
        value = value.get(data)
    is_data = isinstance(value, str) and (value.startswith("data:") or (kind != "image_url" and ":" not in value))
    if kind == "image_url":
        return None if is_data else "an image is given as a data: URL; an address would be fetched by the server"
    return None if is_data else f"{kind}.{data} is base64; an address would be fetched by the server"


class JobLine(Line):
    """One line of a job file. Exactly one of prompt, messages and input is given.

    touches, for, security: what the policy looks at. privacy: the tier that the producer wants. app: the program that
    asks; statistics are kept by it.
    """

    id: LineId | None = None
    category: Text
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None = None
    input: Annotated[Text | Texts | None, BeforeValidator(few_texts)] = None
    system: str | None = None
    json_: bool | None = Field(None, alias="json")
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    model: Text | None = None
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2)
    timeout_s: float | None = Field(None, gt=0, le=86_400)
    metadata: dict[str, Any] | None = None
    touches: Annotated[list[TouchedPath], Field(fail_fast=True)] | None = None
    for_: Text | None = Field(None, alias="for")
    security: bool | None = None
    app: App | None = None
    privacy: Literal["local_only", "lan_ok", "cloud_ok"] | None = None
