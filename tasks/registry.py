"""Classes, and with providers and categories the registry that the configuration in force makes; config.py reads it."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tasks.categories import AUDIT, Category
from tasks.detectors import plain
from tasks.policy import Policy
from tasks.privacy import Markers, Reach, Tier
from tasks.providers import ANTHROPIC_KEY, DEFAULT_CONTEXT, MAX_CONTEXT, Context, Name, Provider, Strict

#: tokens that class `cloud` is taken to hold
CLOUD_CONTEXT = 200_000
#: the class that disqualified work goes to
CLOUD = "cloud"
#: characters of a word that are compared with those there are; comparing takes time and memory with its length
LONGEST = 200


def _sendable(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str):
        raise ValueError("expected true, false, a number or a text")
    fits = -(2**63) <= value < 2**63 if isinstance(value, int) else isinstance(value, str) or math.isfinite(value)
    if not fits:
        raise ValueError("is no number a server could take")
    return value


Option = Annotated[bool | int | float | str, BeforeValidator(_sendable)]


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


def _marker(word: str) -> str:
    if not plain(word).strip():
        raise ValueError("a marker has something in it")
    return word


def _root(folder: str) -> str:
    if not plain(folder).replace("\\", "/").strip("/. ") or not folder.isprintable():
        raise ValueError("names no folder of its own; for everything there is privacy.default")
    return folder


Marker = Annotated[str, AfterValidator(_marker)]
Root = Annotated[str, AfterValidator(_root)]


class PrivacySettings(Strict):
    """What the configuration says of privacy."""

    default: Tier | None = Field(None, description="the tier of jobs of which nothing else is said; lan_ok without it")
    markers: dict[Marker, Tier] = Field(
        default_factory=dict, description="a word, case aside -> the tier it tightens to"
    )
    roots: dict[Root, Tier] = Field(default_factory=dict, description="a folder -> its tier")

    @property
    def marked(self) -> Markers:
        """The user's own detectors; `~` in a folder is the user's home."""
        roots = {path: tier for root, tier in self.roots.items() for path in (root, os.path.expanduser(root))}
        return Markers(self.markers, roots)


class AuditSettings(Strict):
    """Who gives the second opinion on jobs that may not leave."""

    private_class: Name | None = Field(None, description="a local class of another model; without it, a person")


#: names that Anthropic's clients insist on -> what is meant where nothing else is configured; the first that fits
DEFAULT_ALIASES = {"claude-*haiku*": "small", "claude-*": "coder"}


class RetentionSettings(Strict):
    """How long telemetry is kept; rollups are kept for good."""

    calls_days: float = Field(30, gt=0, le=36_500, description="days after which a call's row is deleted")


#: what an environment variable may be called
VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,99}$"


def _variable(name: str) -> str:
    if not re.fullmatch(VARIABLE, name):  # said without it: an address that stands here by mistake is a secret
        raise ValueError("expected the name of an environment variable, which holds the address")
    return name


Variable = Annotated[str, AfterValidator(_variable), Field(json_schema_extra={"pattern": VARIABLE})]


class NotifySettings(Strict):
    """Who is told what happens, and of what."""

    webhook_env: Variable | None = Field(None, description="the variable that holds a webhook's address")
    apprise_env: tuple[Variable, ...] = Field((), description="variables that hold addresses of apprise's kinds")
    backlog_s: float | None = Field(600, gt=0, description="seconds a job may wait for its turn; null: any time")
    batch_done: bool = Field(False, description="tell the end of every batch; else of those submitted with --notify")
    quiet_s: float = Field(
        300, ge=0, le=86_400, description="seconds in which the same is told once, then in one digest"
    )

    @property
    def receivers(self) -> tuple[str, ...]:
        """Every receiver, by its variable."""
        return tuple(dict.fromkeys(((self.webhook_env,) if self.webhook_env else ()) + self.apprise_env))


class WebhookTarget(Strict):
    """Who is told the end of batches of files (/v1/batches), in OpenAI's way. Nobody else is."""

    url_env: Variable = Field(description="the variable that holds the address")
    secret_env: Variable = Field(description="the variable that holds the secret: whsec_ and base64")
    events: tuple[Literal["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"], ...] = Field(
        ("batch.completed", "batch.failed", "batch.expired", "batch.cancelled"), description="of what it is told"
    )
    private: bool = Field(False, description="whether it may be on a private network, or on this machine")


class ApiSettings(Strict):
    """The HTTP API."""

    webhooks: tuple[WebhookTarget, ...] = Field((), description="who is told the end of batches of files")


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
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    notify: NotifySettings = field(default_factory=NotifySettings)
    api: ApiSettings = field(default_factory=ApiSettings)
    aliases: Mapping[str, str] = field(default_factory=dict)

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

    def embeds(self, model_class: str) -> bool:
        """Whether a provider of a class can make embeddings."""
        return any(self.providers[s.provider].kind in ("openai", "ollama") for s in self.classes[model_class].serve)

    @cached_property
    def models(self) -> frozenset[str]:
        """Every model that some class names."""
        return frozenset(s.model for c in self.classes.values() for s in c.serve)

    def knows(self, name: str) -> bool:
        """Whether a request may ask for this model: a class, a configured model, `category:<name>` or `auto`."""
        if name.startswith("category:"):
            return name.removeprefix("category:") in self.categories
        return name == "auto" or name in self.classes or name in self.models

    def meant(self, name: str) -> str:
        """What a model's name stands for: itself where it is known, else what the first alias that fits says."""
        if self.knows(name):
            return name
        return next((meant for pattern, meant in self.aliases.items() if fnmatchcase(name, pattern)), name)

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
    names = {ANTHROPIC_KEY, "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_CUSTOM_HEADERS"}
    names |= {p.api_key_env for p in registry.providers.values() if p.reach is Reach.CLOUD and p.api_key_env}
    return sorted(names - {keeps.api_key_env if keeps is not None else None})


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """` (did you mean 'x'?)`, or the names there are when nothing is near."""
    close = difflib.get_close_matches(word[:LONGEST], known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(sorted(known))})" if known else ""
