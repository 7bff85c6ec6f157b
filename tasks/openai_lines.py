"""A line of an OpenAI batch file, as far as local servers can honour it (shared/contracts/openai-batch.md).

Its body becomes a line of the pool's own form; `model` names a configured model, a class, `category:<name>` or `auto`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tasks.lines import JobLine, Line, LineId, Message, Text


class _OpenAISchema(Line):
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] = Field(alias="schema")


class OpenAIFormat(Line):
    """What shape the answer has."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: _OpenAISchema | None = None

    @model_validator(mode="after")
    def _schema_is_there(self) -> OpenAIFormat:
        if (self.type == "json_schema") is not (self.json_schema is not None):
            raise ValueError("json_schema goes with type json_schema, and only with it")
        return self


class OpenAIBody(Line):
    """The request body of an OpenAI batch line, as far as local servers can honour it."""

    model: Text
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    prompt: Text | None = None
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2048)] | None = None
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2)
    response_format: OpenAIFormat | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    encoding_format: Literal["float"] | None = None
    stream: Literal[False] | None = None
    n: Literal[1] | None = None
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)


class OpenAILine(Line):
    """One line of an OpenAI batch file."""

    custom_id: LineId
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
    body: OpenAIBody


#: generation parameters that are passed on under OpenAI's names
EXTRAS = ("top_p", "seed", "stop", "frequency_penalty", "presence_penalty")


def from_openai(line: OpenAILine, category: str | None) -> tuple[JobLine, dict[str, Any]]:
    """The line in the pool's own form, and what else the request carries (kind, generation parameters).

    category: for lines whose model names none.
    """
    body = line.body
    named = body.model.removeprefix("category:") if body.model.startswith("category:") else None
    default = "embed" if line.url.endswith("embeddings") else "chat"
    fields: dict[str, Any] = {
        "id": line.custom_id,
        "category": named or category or default,
        "model": None if named or body.model == "auto" else body.model,
        "messages": body.messages,
        "prompt": body.prompt,
        "input": body.input,
        "max_tokens": body.max_completion_tokens or body.max_tokens,
        "temperature": body.temperature,
        "metadata": body.metadata,
    }
    if body.response_format and body.response_format.type != "text":
        fields["json"] = True
        fields["schema"] = body.response_format.json_schema and body.response_format.json_schema.schema_
    extras = {name: value for name in EXTRAS if (value := getattr(body, name)) is not None}
    more: dict[str, Any] = {"extras": extras} if extras else {}
    if line.url == "/v1/completions":
        more["kind"] = "complete"
    return JobLine.model_validate(fields), more
