"""Providers as offload.yaml writes them: where each is, how far it reaches, and what its calls may take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tasks.privacy import Reach, reach_of_host, within

#: tokens a class is taken to hold when neither the configuration nor the server says it
DEFAULT_CONTEXT = 8192
#: tokens; model servers keep the size of a context in 32 bits
MAX_CONTEXT = 2**31 - 1
#: where Anthropic's API is, and the variable that its own tools read its key from
ANTHROPIC_URL, ANTHROPIC_KEY = "https://api.anthropic.com", "ANTHROPIC_API_KEY"


def _base_url(url: str) -> str:
    """A URL that paths are put after."""
    try:
        parts = urlsplit(url)
        fits = _HOST.fullmatch(parts.hostname or "") and parts.port != 0
        named = parts.username is not None or parts.password is not None
    except ValueError:  # a port beyond 65535, a bracket left open
        fits, named = None, False
    if named:
        raise ValueError("holds a name or a password; a key comes from the environment: api_key_env")
    if fits and parts.hostname in ("0.0.0.0", "::"):
        raise ValueError(f"{parts.hostname} is where a server listens, not where it is; for this machine say 127.0.0.1")
    if not fits or not url.isprintable() or set(url) & set(" ?#"):
        raise ValueError("expected http://HOST or http://HOST:PORT, with a port of 1 to 65535")
    return url


#: a name or an IPv4 address; an IPv6 address, which stands in brackets
_HOST = re.compile(r"[\w-]+(\.[\w-]+)*\.?|[0-9a-f.]*:[0-9a-f:.]*(%\w+)?")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Url = Annotated[str, Field(pattern=r"^https?://"), AfterValidator(_base_url)]
Context = Annotated[int, Field(ge=256, le=MAX_CONTEXT)]


def _argument(word: str) -> str:
    if "\0" in word:
        raise ValueError("holds a NUL character")
    return word


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise ValueError("no such time zone; expected a name as Europe/Berlin") from None
    return name


#: a program and its arguments; no shell reads them
Argv = tuple[Annotated[str, Field(min_length=1), AfterValidator(_argument)], ...]


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
    interactive: int = Field(
        0, ge=0, le=4096, description="of in_flight, kept free of batches for calls that do not wait: the HTTP API's"
    )
    api_key_env: str | None = Field(None, description="the variable that holds the key")
    path: Path | None = Field(None, description="gguf: the model file")
    slots: int = Field(4, ge=1, le=256, description="gguf: requests served at once")
    context: Context = Field(DEFAULT_CONTEXT, description="gguf: tokens per slot")
    command: Argv = Field(
        (), description="command: the program and its arguments; the prompt comes on its standard input"
    )
    start: Argv = Field((), description="starts its server, as [systemctl, --user, start, ollama]; run on its node")
    stop: Argv = Field((), description="stops its server once its node is drained: offload nodes stop")
    status: Argv = Field((), description="ends with status 0 while its server runs; asked besides a probe")
    limits: tuple[Limit, ...] = Field((), description="at a limit, jobs wait")
    prices: dict[str, dict[Name, Price]] = Field(
        default_factory=dict, description="model -> unit -> what a call costs of it; `usd` is a unit like others"
    )

    @property
    def for_batches(self) -> int:
        """Calls at once that its worker may make."""
        return max(1, self.in_flight - self.interactive)

    @property
    def where(self) -> str:
        """Its address, file or program, for people."""
        return self.url or str(self.path or self.command[0])

    @property
    def has_server(self) -> bool:
        """Whether a model server of its own runs for it on a node."""
        return self.kind in ("ollama", "openai") and self.reach is not Reach.CLOUD

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
    def _commands_have_a_server(self) -> Provider:
        given = [name for name in ("start", "stop", "status") if getattr(self, name)]
        if given and not self.has_server:
            words = f"a provider of kind {self.kind} and reach {self.reach} has no server on a node"
            raise ValueError(f"{', '.join(given)}: {words}")
        return self

    @model_validator(mode="after")
    def _limits_have_units(self) -> Provider:
        priced = {unit for units in self.prices.values() for unit in units}
        seen: set[tuple[str, str]] = set()
        for limit in self.limits:
            if (limit.unit, limit.per) in seen:
                raise ValueError(f"limits: {limit.unit} a {limit.per} is limited twice")
            seen.add((limit.unit, limit.per))
            if limit.unit not in {"requests", "tokens"} | priced:
                raise ValueError(f"limits: no price says what a call costs of {limit.unit}; there are requests, tokens")
        return self
