"""One file per protocol behind one small seam; the one place where a worker opens a connection to a model.

The helpers' straight way, which may load none of this, has workers/straight.py.

A backend turns a `Call` into one HTTP exchange and its reply into a `Reply`, or raises a `CallError`
that says what the loop must do next (errors.py draws the tree).  It keeps no state between calls that an
answer depends on, never retries, and never substitutes a model: the loop decides, so that every request is
one call row.

    border.py        what a provider may be sent, and at which addresses it may be
    base.py          the HTTP client and its timeouts
    foreign.py       the border where aiohttp's and httpx's errors become CallErrors
    refusals.py      which status, and which error inside a stream, is which CallError
    streams.py       chunks of bytes → lines → server-sent events or JSON lines
    locality.py      whether an Ollama's models run on its own machine
    unloading.py     how each model server is asked to free its memory
    recognise.py     which model server answers at an address, and how it is
    ollama_api.py    Ollama's native /api/chat, /api/generate and /api/embed
    openai_api.py    chat, completions and embeddings as vLLM, llama-swap, llama.cpp and LM Studio speak them
    anthropic_api.py Claude, by Anthropic's own package
    command.py       a program that gets the prompt on its standard input
    gguf_server.py   llama.cpp's own server in a child process, for providers of kind `gguf`
    served_gguf.py   that server and the openai backend as one

A new protocol is one file here and one line in `connect`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tasks.errors import ConfigError
from tasks.privacy import NOT_CLEARED, Clearance, Markers
from tasks.providers import Provider

if TYPE_CHECKING:
    from workers.backends.border import Border


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds each part of a call may take."""

    connect: float = 5.0
    load: float = 600.0  #: until the model is loaded: added to `first_token` for the first byte
    first_token: float = 120.0  #: from the end of the load to the first token
    between_tokens: float = 60.0
    total: float = 900.0  #: the whole call


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer, as it comes. tool_calls: in the shape of OpenAI's streams, each with its index."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """What one request asks of a model.

    `messages` for kind chat (OpenAI's shape: role, content), `prompt` for complete, `inputs` for embed.
    `options` are the class's pinned runner options, always sent; `extras` are the caller's own generation
    parameters by OpenAI's names (top_p, seed, stop, …). `tools` and `tool_choice` are in OpenAI's shape.
    `on_delta` is given every piece of the answer, on the event loop, before the reply is whole.
    """

    kind: Literal["chat", "complete", "embed"]
    model: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    prompt: str = ""
    inputs: list[str] = field(default_factory=list)
    json: bool = False
    schema: dict[str, Any] | None = None
    think: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: Any = None
    on_delta: Callable[[Delta], None] | None = None
    timeouts: Timeouts = Timeouts()
    clearance: Clearance = NOT_CLEARED  #: how far it may go: the strictest unless somebody says more


@dataclass(slots=True)
class Reply:
    """What a model server answered, before the answer is checked.

    Times are milliseconds; `tokens_out` includes the thinking tokens, `tokens_thinking` is None where the
    server does not count them apart. `stop_sequence` is the one that was met, where the server says so. `vectors` holds
    the embeddings of an embed call, `tool_calls` what the model wants called, in OpenAI's shape.
    """

    model: str
    text: str = ""
    reasoning: str = ""
    vectors: list[list[float]] = field(default_factory=list)
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = "stop"
    stop_sequence: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_thinking: int | None = None
    load_ms: float = 0.0
    first_token_ms: float = 0.0
    duration_ms: float = 0.0


class Health(StrEnum):
    """How a provider is, each with a wait of its own (workers/loop.py)."""

    HEALTHY = "healthy"
    BUSY = "busy"  #: alive, back off
    WARMING = "warming"  #: loading a model
    OFFLINE = "offline"
    MISCONFIGURED = "misconfigured"  #: 401, 403, or a model it does not have


@dataclass(frozen=True, slots=True)
class Probe:
    """What a server says of itself without generating anything.

    `models` are the names it serves; `loaded` those in memory now; `context` the tokens per slot where the
    server says so.
    """

    health: Health
    detail: str = ""
    server: str = ""  #: ollama, llama-swap, llama.cpp, vllm, lm-studio, litellm, openai
    models: tuple[str, ...] = ()
    loaded: tuple[str, ...] = ()
    context: int | None = None

    def has(self, model: str) -> bool:
        """Whether it serves a model; a server that lists none is trusted. Ollama lists `x` as `x:latest`."""
        return not self.models or model in self.models or f"{model}:latest" in self.models


class Backend(Protocol):
    """The seam: one implementation per protocol."""

    async def call(self, call: Call) -> Reply:
        """Send one request and read its whole reply; raises CallError."""

    async def probe(self) -> Probe:
        """Ask the server how it is; never generates, never raises for a server that is down."""

    async def unload(self, models: Collection[str]) -> bool:
        """Ask the server to take these of its models out of memory; False where it has no way to be asked.

        Raises CallError, Busy `still_loaded` where one stays. Nothing of a job is sent.
        """

    async def aclose(self) -> None:
        """Close every connection."""


def connect(kind: str, url: str, name: str, api_key: str | None = None, border: Border | None = None) -> Backend:
    """The backend for a model server of this kind; opens nothing before the first call.

    url: the server's root for `ollama` and `anthropic`, the base with its /v1 for `openai`, and what `GgufServer.url`
    says for `gguf`.  name: the provider's, for messages.  border: what it may be sent, and where it may be; loopback
    unless told.  Raises ConfigError for an unknown kind.
    """
    # imported here: the seam itself stays free of aiohttp, which the child process of gguf_server never needs
    from workers.backends.border import LOOPBACK
    from workers.backends.ollama_api import Ollama
    from workers.backends.openai_api import OpenAI

    kinds: dict[str, Callable[[str, str, str | None, Border], Backend]] = {
        "ollama": Ollama,
        "openai": OpenAI,
        "gguf": OpenAI,
        "anthropic": _anthropic,
    }
    if kind not in kinds:
        raise ConfigError(f"{name}: no provider kind {kind!r}; there are {', '.join(kinds)}")
    return kinds[kind](url, name, api_key, border or LOOPBACK)


def _anthropic(url: str, name: str, api_key: str | None, border: Border) -> Backend:
    try:
        from workers.backends.anthropic_api import Anthropic
    except ModuleNotFoundError as error:
        raise ConfigError(f"{name}: the package {error.name} is not installed: pip install 'offload[claude]'") from None
    return Anthropic(url, name, api_key, border)


def for_provider(provider: Provider, markers: Markers) -> Backend:
    """The backend of a configured provider; its key comes from the environment. markers: the user's own detectors."""
    from workers.backends.border import Border

    if provider.kind == "gguf":
        from workers.backends.gguf_server import GgufServer
        from workers.backends.served_gguf import ServedGguf

        assert provider.path is not None  # the configuration was checked
        return ServedGguf(GgufServer(provider.path, provider.slots, provider.context), provider.name)
    border = Border(provider.reach, markers)
    if provider.kind == "command":
        from workers.backends.command import Command

        return Command(provider.command, provider.name, border)
    key = os.environ.get(provider.api_key_env) if provider.api_key_env else None
    return connect(provider.kind, provider.url or "", provider.name, key, border)
