"""Providers, classes and categories, as the configuration in force has them; config.py reads it."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tasks.categories import AUDIT, Category
from tasks.policy import Policy
from tasks.privacy import Markers, Reach, Tier, reach_of_host, within

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]

#: tokens a class is taken to hold when neither the configuration nor the server says it
DEFAULT_CONTEXT = 8192
#: tokens that class `cloud` is taken to hold
CLOUD_CONTEXT = 200_000
#: the class that disqualified work goes to
CLOUD = "cloud"
#: where Anthropic's API is, and the variable that its own tools read its key from
ANTHROPIC_URL, ANTHROPIC_KEY = "https://api.anthropic.com", "ANTHROPIC_API_KEY"
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


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise ValueError("no such time zone; expected a name as Europe/Berlin") from None
    return name


class Strict(BaseModel):
    """Unknown keys are errors, and errors never show values."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, populate_by_name=True, allow_inf_nan=False
    )


class Limit(Strict):
    """At most so much of a unit in a minute or a day. Units: requests, tokens, and those that `prices` names."""

    unit: Name
    per: Literal["minute", "day"]
    most: float = Field(gt=0)
    zone: Annotated[str, AfterValidator(_zone)] = Field("UTC", description="where the day ends, as Europe/Berlin")


class Price(Strict):
    """What a call costs of a unit."""

    request: float = Field(0, ge=0, description="each call")
    input: float = Field(0, ge=0, description="a million tokens sent")
    output: float = Field(0, ge=0, description="a million tokens answered")


class Provider(Strict):
    """A configured model server, or a command."""

    name: Name
    kind: Literal["ollama", "openai", "gguf", "anthropic", "command"] = Field(
        description="the protocol it speaks; gguf: the pool serves the file; command: a program that gets the prompt"
    )
    url: Url | None = Field(None, description="base URL; for openai with its /v1")
    reach: Reach = Field(
        Reach.LOCAL, description="local: loopback; lan: a private network; cloud: else (anthropic, command by default)"
    )
    in_flight: int = Field(4, ge=1, le=4096, description="calls at once")
    api_key_env: str | None = Field(None, description="the variable that holds the key")
    path: Path | None = Field(None, description="gguf: the model file")
    slots: int = Field(4, ge=1, le=256, description="gguf: requests served at once")
    context: Context = Field(DEFAULT_CONTEXT, description="gguf: tokens per slot")
    command: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="command: the program and its arguments; the prompt comes on its standard input"
    )
    limits: tuple[Limit, ...] = Field((), description="at a limit, jobs wait")
    prices: dict[str, dict[Name, Price]] = Field(
        default_factory=dict, description="model -> unit -> what a call costs of it; `usd` is a unit like others"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        """What a kind makes plain: a GGUF file names its provider, a cloud's address is known."""
        if not isinstance(data, dict):
            return data
        kind = data.get("kind")
        if kind == "gguf" and isinstance(data.get("path"), str):
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(data["path"]).stem).lstrip("._-") or "gguf"
            return {"name": name, "in_flight": data.get("slots", 4)} | data
        if kind == "anthropic":
            return {"url": ANTHROPIC_URL, "api_key_env": ANTHROPIC_KEY, "reach": Reach.CLOUD} | data
        if kind == "command":
            return {"reach": Reach.CLOUD} | data
        return data

    @model_validator(mode="after")
    def _address_fits_kind(self) -> Provider:
        needs = {"gguf": "path", "command": "command"}.get(self.kind, "url")
        given = {n for n in ("url", "path", "command") if getattr(self, n)}
        if needs not in given:
            raise ValueError(f"a provider of kind {self.kind} has a {needs}")
        if others := sorted(given - {needs}):
            raise ValueError(f"a provider of kind {self.kind} has a {needs} and no {' and no '.join(others)}")
        return self

    @model_validator(mode="after")
    def _reach_fits_address(self) -> Provider:
        if self.kind == "anthropic" and self.reach is not Reach.CLOUD:
            raise ValueError("a provider of kind anthropic has reach cloud")
        actual = reach_of_host(urlsplit(self.url).hostname or "") if self.url else None
        if actual is not None and not within(actual, self.reach):
            raise ValueError(f"its address has reach {actual}, and it is declared {self.reach}; say reach: {actual}")
        return self

    @model_validator(mode="after")
    def _limits_have_units(self) -> Provider:
        priced = {unit for units in self.prices.values() for unit in units}
        for limit in self.limits:
            if limit.unit not in {"requests", "tokens"} | priced:
                raise ValueError(f"limits: no price says what a call costs of {limit.unit}; there are requests, tokens")
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
        ModelClass(name=CLOUD, options={"num_ctx": CLOUD_CONTEXT}),
    )
}


class PrivacySettings(Strict):
    """What the configuration says of privacy."""

    default: Tier | None = Field(None, description="the tier of jobs of which nothing else is said; lan_ok without it")
    markers: dict[str, Tier] = Field(default_factory=dict, description="a word, case aside -> the tier it tightens to")
    roots: dict[str, Tier] = Field(default_factory=dict, description="a folder -> the tier its paths tighten to")

    @property
    def marked(self) -> Markers:
        """The user's own detectors; `~` in a folder is the user's home."""
        roots = {path: tier for root, tier in self.roots.items() for path in (root, os.path.expanduser(root))}
        return Markers(self.markers, roots)


class AuditSettings(Strict):
    """Who gives the second opinion on jobs that may not leave."""

    private_class: Name | None = Field(None, description="a local class of another model; without it, a person")


@dataclass(frozen=True)
class Registry:
    """The configuration in force. `source` says in words where it comes from."""

    providers: Mapping[str, Provider]
    classes: Mapping[str, ModelClass]
    categories: Mapping[str, Category]
    source: str
    policy: Policy
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    audit: AuditSettings = field(default_factory=AuditSettings)

    @cached_property
    def markers(self) -> Markers:
        """The user's own detectors."""
        return self.privacy.marked

    @cached_property
    def reaches(self) -> dict[str, Reach]:
        """class -> the reach of all its providers; classes that nothing serves are left out, but for `cloud`."""
        found = {c.name: self.providers[c.serve[0].provider].reach for c in self.classes.values() if c.serve}
        return {CLOUD: Reach.CLOUD} | found

    @property
    def has_cloud(self) -> bool:
        """Whether disqualified work has somewhere to go."""
        return bool(self.classes[CLOUD].serve)

    @cached_property
    def cloud_embeds(self) -> bool:
        """Whether class `cloud` can make embeddings."""
        return any(self.providers[s.provider].kind in ("openai", "ollama") for s in self.classes[CLOUD].serve)

    @cached_property
    def models(self) -> frozenset[str]:
        """Every model that some class names."""
        return frozenset(s.model for c in self.classes.values() for s in c.serve)

    def category(self, name: str) -> Category | None:
        """A category that a job may have, the pool's own among them."""
        return AUDIT if name == AUDIT.name else self.categories.get(name)

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


def cloud_keys(registry: Registry, keeps: Provider | None = None) -> list[str]:
    """The variables that hold clouds' keys, but for one that provider `keeps` reads itself."""
    names = {ANTHROPIC_KEY, "ANTHROPIC_AUTH_TOKEN"}
    names |= {p.api_key_env for p in registry.providers.values() if p.reach is Reach.CLOUD and p.api_key_env}
    return sorted(names - {keeps.api_key_env if keeps is not None else None})


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """` (did you mean 'x'?)`, or the names there are when nothing is near."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(sorted(known))})" if known else ""
