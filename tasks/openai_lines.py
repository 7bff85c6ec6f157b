"""A line of an OpenAI batch file, as far as local servers can honour it (shared/contracts/openai-batch.md).

Its body becomes a line of the pool's own form; `model` names a configured model, a class, `category:<name>` or `auto`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from tasks.lines import App, JobLine, Line, LineId, Message, Text, Texts, TouchedPath, few_texts


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


class OffloadSays(Line):
    """What only this pool understands of a request; it travels as `metadata.offload`."""

    category: Text | None = None
    touches: Annotated[list[TouchedPath], Field(fail_fast=True)] | None = None
    for_: Text | None = Field(None, alias="for")
    security: bool | None = None
    privacy: Literal["local_only", "lan_ok", "cloud_ok"] | None = None
    app: App | None = None


class OpenAIMetadata(Line):
    """A producer's own notes, and ours."""

    model_config = ConfigDict(extra="allow")

    offload: OffloadSays | None = None


class InputPart(Line):
    """A piece of text of an input item of /v1/responses."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class InputItem(Line):
    """One message of the input of /v1/responses."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[InputPart], Field(fail_fast=True)]


class ResponseFormat(Line):
    """What shape the answer of /v1/responses has."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _schema_is_there(self) -> ResponseFormat:
        if (self.type == "json_schema") is not (self.schema_ is not None):
            raise ValueError("schema goes with type json_schema, and only with it")
        return self


class ResponseText(Line):
    """Where /v1/responses says what shape the answer has."""

    format: ResponseFormat | None = None


def _form_of_input(value: object) -> str:
    if isinstance(value, list):
        return "list[item]" if value and isinstance(value[0], dict | InputItem) else "list[str]"
    return "str"


def _no_tokens(value: object) -> object:
    """The same, unless it is made of tokens, which LangChain's OpenAIEmbeddings sends by itself."""
    if isinstance(value, list) and value and isinstance(value[0], int | list):
        words = "is made of tokens, which only OpenAI has; give texts (LangChain: check_embedding_ctx_length=False)"
        raise PydanticCustomError("tokens", words)
    return value


#: a text, several to embed, or a conversation
Input = Annotated[
    Annotated[Text, Tag("str")]
    | Annotated[Texts, BeforeValidator(few_texts), Tag("list[str]")]
    | Annotated[list[InputItem], Field(min_length=1, fail_fast=True), Tag("list[item]")],
    Discriminator(_form_of_input),
    BeforeValidator(_no_tokens),
]


def _only(value: object) -> object:
    """The one prompt of a list; OpenAI would answer each of several."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


class OpenAIBody(Line):
    """The request body of an OpenAI batch line, as far as local servers can honour it. A null says nothing."""

    model: Text
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None = None
    prompt: Annotated[Text | None, BeforeValidator(_only)] = None
    input: Input | None = None
    instructions: str | None = None
    text: ResponseText | None = None
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    max_output_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2)
    response_format: OpenAIFormat | None = None
    metadata: OpenAIMetadata | None = None
    user: str | None = None
    store: bool | None = None
    encoding_format: Literal["float"] | None = None
    stream: Literal[False] | None = None
    n: Literal[1] | None = None
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    # what says nothing to a local model
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _said(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


class OpenAILine(Line):
    """One line of an OpenAI batch file."""

    custom_id: LineId
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
    body: OpenAIBody


#: generation parameters that are passed on under OpenAI's names
EXTRAS = ("top_p", "seed", "stop", "frequency_penalty", "presence_penalty")


def from_openai(line: OpenAILine, category: str | None) -> tuple[JobLine, dict[str, Any]]:
    """The line in the pool's own form, and what else the request carries (kind, generation parameters).

    category: for lines that name none.
    """
    body = line.body
    says = body.metadata.offload if body.metadata and body.metadata.offload else OffloadSays()
    named = body.model.removeprefix("category:") if body.model.startswith("category:") else says.category
    default = "embed" if line.url.endswith("embeddings") else "chat"
    shape = body.text.format if body.text and body.text.format else body.response_format
    fields: dict[str, Any] = {
        "id": line.custom_id,
        "category": named or category or default,
        "model": None if body.model.startswith("category:") or body.model == "auto" else body.model,
        "messages": body.messages,
        "prompt": body.prompt,
        "input": body.input,
        "system": body.instructions,
        "max_tokens": body.max_output_tokens or body.max_completion_tokens or body.max_tokens,
        "temperature": body.temperature,
        "metadata": (body.metadata.model_extra or None) if body.metadata else None,
        "touches": says.touches,
        "for": says.for_,
        "security": says.security,
        "privacy": says.privacy,
        "app": says.app,
    }
    if line.url == "/v1/responses":
        fields |= _asked(body)
    if shape and shape.type != "text":
        fields["json"] = True
        fields["schema"] = shape.schema_ if isinstance(shape, ResponseFormat) else _schema(shape)
    extras = {name: value for name in EXTRAS if (value := getattr(body, name)) is not None}
    more: dict[str, Any] = {"extras": extras} if extras else {}
    if line.url == "/v1/completions":
        more["kind"] = "complete"
    return JobLine.model_validate(fields), more


def _schema(shape: OpenAIFormat) -> dict[str, Any] | None:
    return shape.json_schema.schema_ if shape.json_schema else None


def _asked(body: OpenAIBody) -> dict[str, Any]:
    """What a body of /v1/responses asks, in the pool's fields."""
    if isinstance(body.input, str) or body.input is None:
        return {"prompt": body.input, "input": None}
    return {"input": None, "messages": [_message(item) for item in body.input]}


def _message(item: InputItem | str) -> dict[str, Any]:
    if isinstance(item, str):
        return {"role": "user", "content": item}
    text = item.content if isinstance(item.content, str) else "\n".join(part.text for part in item.content)
    return {"role": item.role, "content": text}
