"""A job line in the pool's own form."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Text = Annotated[str, StringConstraints(min_length=1)]
TouchedPath = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"\S")]
LineId = Annotated[str, StringConstraints(min_length=1, max_length=256)]


#: what a producer calls its program; it is a key of the rollups
App = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x20\x7f](.*[^\x00-\x20\x7f])?$")]


class Line(BaseModel):
    """Strict: unknown fields are errors, and errors never show values."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class Message(Line):
    """One message of a chat, in OpenAI's shape."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class JobLine(Line):
    """One line of a job file. Exactly one of prompt, messages and input is given.

    touches, for, security: what the policy looks at. privacy: the tier that the producer wants. app: the program that
    asks; statistics are kept by it.
    """

    id: LineId | None = None
    category: Text
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2048)] | None = None
    system: str | None = None
    json_: bool | None = Field(None, alias="json")
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    model: Text | None = None
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2)
    timeout_s: float | None = Field(None, gt=0, le=86_400)
    metadata: dict[str, Any] | None = None
    touches: list[TouchedPath] | None = None
    for_: Text | None = Field(None, alias="for")
    security: bool | None = None
    app: App | None = None
    privacy: Literal["local_only", "lan_ok", "cloud_ok"] | None = None
