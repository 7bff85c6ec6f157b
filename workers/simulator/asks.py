"""The words that the dialects and the exchange share: what is asked, what is replied, what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from workers.simulator.config import ModelSpec, SimulatorConfig

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the request offers. parameters: its JSON Schema."""

    name: str
    parameters: dict[str, Any]


@dataclass(slots=True)
class Ask:
    """One request, whatever protocol it came by.

    model: the configured name; asked: the name as the client wrote it. prompt: all that is not system text,
    or the inputs of an embedding, joined by newlines. shape: None for text, "json", or a JSON Schema. think:
    whether thoughts come before the answer; swallowed: Ollama's `format` with `think` unset, which leaves the
    content empty. max_tokens: 0 is unlimited. context: tokens. runner: the options whose change reloads the
    model. keep_alive: seconds, negative for ever.
    """

    model: str
    asked: str
    spec: ModelSpec
    prompt: str
    system: str = ""
    inputs: list[str] = field(default_factory=list)
    tool: Tool | None = None  #: the one to call
    shape: Literal["json"] | dict[str, Any] | None = None
    think: bool = False
    swallowed: bool = False
    max_tokens: int = 0
    stops: tuple[str, ...] = ()
    stream: bool = False
    context: int = 0
    runner: tuple[Any, ...] = ()
    keep_alive: float = 300.0
    dimensions: int = 0
    base64: bool = False
    usage: bool = False  #: OpenAI's stream_options.include_usage
    thoughts_in: str = "reasoning_content"  #: the field of OpenAI's replies
    only: Literal["", "load", "unload"] = ""  #: Ollama's request without a prompt


@dataclass(slots=True)
class Reply:
    """What goes back. Times are nanoseconds: load_ns from the arrival until a loaded model and a slot were
    had.
    """

    text: str = ""
    reasoning: str = ""
    call: tuple[str, dict[str, Any]] | None = None  #: a tool's name, and with what it is called
    vectors: list[list[float | None]] = field(default_factory=list)
    finish: Literal["stop", "length", "stop_sequence", "load", "unload"] = "stop"
    stopped_at: str | None = None  #: the stop text that was met
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_thinking: int = 0
    load_ns: int = 0
    first_ns: int = 0
    total_ns: int = 0
    piece: int = 4  #: characters in one piece of a stream
    number: int = 0  #: of the request, for ids


class Refusal(Exception):
    """The request is answered with an error status.

    kind: a word by which a dialect picks its own error type. retry_after: seconds, as text, or "".
    """

    def __init__(self, status: int, message: str, kind: str = "", retry_after: str = "", **facts: int) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.retry_after, self.facts = (
            status,
            message,
            kind,
            retry_after,
            facts,
        )


class Dialect(Protocol):
    """One route of one protocol: how its bodies are read and its replies are written."""

    path: str
    stream_type: str  #: the media type of a stream

    def read(self, body: Body, config: SimulatorConfig) -> Ask:
        """Understand a body; raises Refusal."""

    def whole(self, ask: Ask, reply: Reply) -> bytes:
        """The reply as one JSON document."""

    def frames(self, ask: Ask, reply: Reply) -> list[bytes]:
        """The reply as the parts of a stream."""

    def refusal(self, refusal: Refusal) -> bytes:
        """An error's body."""

    def stream_error(self, message: str) -> bytes:
        """An error within a stream that began with status 200."""


def tokens(text: str) -> int:
    """About four characters a token, never 0."""
    return max(1, (len(text) + 3) // 4)


def pieces(text: str, size: int) -> list[str]:
    """`text` in pieces of at least `size` characters; a long text is cut into some hundreds at most."""
    size = max(size, len(text) // 512)
    return [text[i : i + size] for i in range(0, len(text), size)]


def plain(content: object) -> str:
    """A message's content as text: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return ""


def split_system(messages: object) -> tuple[str, str]:
    """System text and all other text of a list of chat messages; raises Refusal when it is no such list."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise Refusal(400, "messages must be a list of objects", "invalid")
    system = [plain(m.get("content")) for m in messages if m.get("role") in ("system", "developer")]
    rest = [plain(m.get("content")) for m in messages if m.get("role") not in ("system", "developer")]
    return "\n".join(system), "\n".join(rest)


def offered(tools: object, messages: object) -> Tool | None:
    """The first tool of a request, in OpenAI's shape or Anthropic's; None without one, or when its result is there."""
    last = messages[-1] if isinstance(messages, list) and messages else {}
    content = last.get("content") if isinstance(last, dict) else None
    answered = isinstance(content, list) and any(p.get("type") == "tool_result" for p in content if isinstance(p, dict))
    if not isinstance(tools, list) or not tools or not isinstance(last, dict) or last.get("role") == "tool" or answered:
        return None
    tool = tools[0].get("function", tools[0]) if isinstance(tools[0], dict) else {}
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        raise Refusal(400, "a tool has no name", "invalid")
    schema = tool.get("parameters") or tool.get("input_schema")
    return Tool(tool["name"], schema if isinstance(schema, dict) else {"type": "object"})


def stop_texts(value: object) -> tuple[str, ...]:
    """One stop text or a list of them."""
    if isinstance(value, str):
        return (value,)
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else ()


def texts(value: object) -> list[str]:
    """Embedding inputs: a text, a list of texts, a list of token numbers, or a list of such lists; raises
    Refusal.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        if value and all(isinstance(item, int) for item in value):
            return [str(value)]
        if all(isinstance(item, (str, list)) for item in value):
            return [item if isinstance(item, str) else str(item) for item in value]
    raise Refusal(400, "input must be a string or a list of strings", "invalid")


def find_model(
    body: Body, config: SimulatorConfig, kind: Literal["chat", "embed"], capability: str
) -> tuple[str, str, ModelSpec]:
    """The model as asked for, as configured, and its spec; raises Refusal."""
    asked = body.get("model")
    if not isinstance(asked, str) or not asked:
        raise Refusal(400, "model is required", "invalid")
    found = config.resolve(asked)
    if found is None:
        raise Refusal(404, f"model '{asked}' not found", "model")
    if found[1].kind != kind:
        raise Refusal(400, f'"{asked}" does not support {capability}', "invalid")
    return asked, *found


def context_tokens(text: str) -> int:
    """What a prompt takes of the context: 3.5 characters a token."""
    return max(1, int(-(-len(text) // 3.5)))
