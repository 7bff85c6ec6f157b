"""Providers, classes and categories, as the configuration in force has them; config.py reads it."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tasks.categories import Category

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]

#: tokens a class is taken to hold when neither the configuration nor the server says it
DEFAULT_CONTEXT = 8192
#: tokens; model servers keep the size of a context in 32 bits
MAX_CONTEXT = 2**31 - 1


def _sendable(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str):
        raise ValueError("expected true, false, a number or a text")
    fits = -(2**63) <= value < 2**63 if isinstance(value, int) else isinstance(value, str) or math.isfinite(value)
    if not fits:
        raise ValueError("is no number a server could take")
    return value


def _base_url(url: str) -> str:
    """A URL that paths are put after."""
    try:
        parts = urlsplit(url)
        fits = _HOST.fullmatch(parts.hostname or "") and parts.port != 0
    except ValueError:  # a port beyond 65535, a bracket left open
        fits = None
    if not fits or not url.isprintable() or set(url) & set(" ?#"):
        raise ValueError("expected http://HOST or http://HOST:PORT, with a port of 1 to 65535")
    return url


#: a name or an IPv4 address; an IPv6 address, which stands in brackets
_HOST = re.compile(r"[\w-]+(\.[\w-]+)*\.?|[0-9a-f.]*:[0-9a-f:.]*(%\w+)?")

Option = Annotated[bool | int | float | str, BeforeValidator(_sendable)]
Url = Annotated[str, Field(pattern=r"^https?://"), AfterValidator(_base_url)]
Context = Annotated[int, Field(ge=256, le=MAX_CONTEXT)]


class Strict(BaseModel):
    """Unknown keys are errors, and errors never show values."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, populate_by_name=True, allow_inf_nan=False
    )


class Provider(Strict):
    """A configured model server."""

    name: Name
    kind: Literal["ollama", "openai", "gguf"] = Field(
        description="the protocol it speaks; gguf: the pool serves the file"
    )
    url: Url | None = Field(None, description="base URL; for openai with its /v1")
    reach: Literal["local", "lan"] = Field("local", description="local: loopback; lan: a private network")
    in_flight: int = Field(4, ge=1, le=4096, description="calls at once")
    api_key_env: str | None = Field(None, description="the variable that holds the key")
    path: Path | None = Field(None, description="gguf: the model file")
    slots: int = Field(4, ge=1, le=256, description="gguf: requests served at once")
    context: Context = Field(DEFAULT_CONTEXT, description="gguf: tokens per slot")

    @model_validator(mode="before")
    @classmethod
    def _gguf_is_named_after_its_file(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("kind") == "gguf" and isinstance(data.get("path"), str):
            data = {
                "name": re.sub(r"[^A-Za-z0-9._-]+", "-", Path(data["path"]).stem).lstrip("._-") or "gguf",
                "in_flight": data.get("slots", 4),
            } | data
        return data

    @model_validator(mode="after")
    def _address_fits_kind(self) -> Provider:
        if self.kind == "gguf" and (self.path is None or self.url):
            raise ValueError("a gguf provider has a path and no url")
        if self.kind != "gguf" and (self.url is None or self.path):
            raise ValueError(f"a provider of kind {self.kind} has a url and no path")
        return self


class Serve(Strict):
    """One model on one provider that can stand in for the others of its class."""

    provider: Name
    model: str = Field(min_length=1)
    context: Context | None = Field(None, description="tokens; default: the class's num_ctx")


class TimeoutSettings(Strict):
    """Seconds each part of a call may take."""

    connect: float = Field(5, gt=0)
    load: float = Field(600, ge=0)
    first_token: float = Field(120, gt=0)
    between_tokens: float = Field(60, gt=0)
    total: float = Field(900, gt=0)


class ModelClass(Strict):
    """Models that can stand in for each other, behind one queue."""

    name: Name
    serve: tuple[Serve, ...] = ()
    options: dict[str, Option] = Field(
        default_factory=dict, description="runner options, always sent, so that no server reloads a model because of us"
    )
    think: bool | None = Field(None, description="whether the model thinks first; sent explicitly")
    dimensions: int | None = Field(None, ge=1, le=65_536, description="numbers in one embedding")
    timeouts: TimeoutSettings = TimeoutSettings()

    @model_validator(mode="after")
    def _num_ctx_holds_a_prompt(self) -> ModelClass:
        pinned = self.options.get("num_ctx", DEFAULT_CONTEXT)
        if isinstance(pinned, bool) or not isinstance(pinned, int) or not 256 <= pinned <= MAX_CONTEXT:
            raise ValueError(f"options.num_ctx is a whole number of tokens, 256 to {MAX_CONTEXT}")
        return self

    def context(self, serve: Serve) -> int:
        """Tokens one request may hold, prompt and answer together."""
        declared = serve.context or self.options.get("num_ctx") or DEFAULT_CONTEXT
        return int(declared)


DEFAULT_PROVIDERS = (Provider(name="ollama", kind="ollama", url="http://127.0.0.1:11434"),)


def _default_class(name: str, model: str, **more: Any) -> ModelClass:
    return ModelClass(name=name, serve=(Serve(provider="ollama", model=model),), **more)


#: the models of the host that the two helper scripts were written for
DEFAULT_CLASSES: dict[str, ModelClass] = {
    c.name: c
    for c in (
        _default_class("small", "gemma3:4b", options={"num_ctx": 8192}, think=False),
        _default_class("coder", "qwen2.5-coder:7b", options={"num_ctx": 8192}, think=False),
        _default_class("reason", "gemma4:26b", options={"num_ctx": 16384}, think=True),
        _default_class("embed", "bge-m3", options={"num_ctx": 8192}),
    )
}


@dataclass(frozen=True)
class Registry:
    """The configuration in force. `source` says in words where it comes from."""

    providers: Mapping[str, Provider]
    classes: Mapping[str, ModelClass]
    categories: Mapping[str, Category]
    source: str

    @cached_property
    def models(self) -> frozenset[str]:
        """Every model that some class names."""
        return frozenset(s.model for c in self.classes.values() for s in c.serve)

    def classes_of(self, provider: str) -> tuple[str, ...]:
        """The classes that a provider serves."""
        return tuple(c.name for c in self.classes.values() if any(s.provider == provider for s in c.serve))

    def serve(self, model_class: str, provider: str, model: str | None = None) -> Serve | None:
        """What a provider runs for a class, or None where it cannot."""
        entries = self.classes[model_class].serve if model_class in self.classes else ()
        return next((s for s in entries if s.provider == provider and model in (None, s.model)), None)

    def class_for(self, category: Category, model: str | None) -> str | None:
        """The class a job goes to; with a pinned model, one all of whose providers can run it."""
        if model is None:
            return category.model_class
        preferred = [category.model_class, *self.classes]
        return next((name for name in preferred if self._all_run(name, model)), None)

    def _all_run(self, name: str, model: str) -> bool:
        entries = self.classes[name].serve if name in self.classes else ()
        providers = {s.provider for s in entries}
        return bool(entries) and providers == {s.provider for s in entries if s.model == model}


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """` (did you mean 'x'?)`, or the names there are when nothing is near."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(sorted(known))})" if known else ""
