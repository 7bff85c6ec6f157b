"""The environment: one OFFLOAD_ variable for each setting, and the times that recovery is built on."""

from __future__ import annotations

import json
import os
import re
import socket
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.errors import ConfigError


@dataclass(frozen=True)
class Times:
    """Seconds of the recovery machinery; one set, so that they always fit together.

    The lease outlives two missed heartbeats; a worker stops its own calls `fence_margin` before its
    lease is over, so that nobody else can have started them yet.
    """

    lease: float = 30.0
    heartbeat: float = 10.0
    fence_margin: float = 5.0
    sweep: float = 5.0
    slice_lost: float = 7.5  #: a sent slice may be unclaimed and nowhere in Redis this long; 15 with sweep and queue
    worker_gone: float = 45.0  #: without a heartbeat for this long a worker is not live
    audit: float = 10.0
    notify: float = 10.0
    fan_out: float = 5.0  #: between two looks for fan-outs that may go on
    rollup: float = 3600.0  #: between two rollups, and between two prunes
    cancel_check: float = 1.0  #: how often a worker looks for cancelled batches
    loop_stuck: float = 5.0  #: an event loop that has not ticked this long renews nothing
    turn: float = 60.0  #: a class keeps its provider this long while others wait
    watchdog: float = 60.0  #: a worker that slices wait for and that receives none for this long is ended
    class_dead: float = 60.0  #: no worker took a class's work for this long: `on_failure: escalate` takes it elsewhere
    loading_abandoned: float = 600.0  #: a batch that nobody has added to for this long is dropped

    def divided(self, by: float) -> Times:
        """The same times, each divided by `by`; tests hurry with it."""
        return Times(**{f.name: getattr(self, f.name) / by for f in fields(self)})


#: what a node may be called: it is part of names in Celery, in logs and in results
NODE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"

#: basic auth as Flower compares it
USER_AND_PASSWORD = r"[!-9;-~]+:[!-~]+"


def _host_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname().split(".")[0]).lstrip("._-")[:63] or "node"


class Settings(BaseSettings):
    """What the environment says; every field is read from OFFLOAD_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="OFFLOAD_", env_ignore_empty=True, hide_input_in_errors=True)

    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("offload", appauthor=False)),
        description="the one folder all state is in",
    )
    config: Path | None = Field(None, description="offload.yaml; without it OFFLOAD_HOME/offload.yaml")
    policy: Path | None = Field(None, description="policy.yaml; without it OFFLOAD_HOME/policy.yaml")
    log: Path | None = Field(None, description="the helpers' telemetry; without it OFFLOAD_HOME/offload.jsonl")
    redis_url: str | None = Field(
        None, pattern=r"^rediss?://", description="a Redis of your own instead of the embedded one"
    )
    database_url: str | None = Field(
        None,
        description="a ledger elsewhere: sqlite:///path, or postgresql://user:password@host/database for many machines",
    )
    node: str = Field(default_factory=_host_name, pattern=NODE, description="this machine's name")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="how much the roles say")
    log_format: Literal["console", "json"] = Field("console", description="for people or for machines")
    drain_s: float = Field(
        10.0, ge=0, allow_inf_nan=False, description="seconds a worker that stops lets its calls end"
    )
    api_key: SecretStr | None = Field(
        None, min_length=20, description="a key of an administrator for the HTTP API, beside those of `offload keys`"
    )
    flower_auth: SecretStr | None = Field(
        None, description="user:password of Flower's pages; without it one is made and kept in the run folder"
    )
    time_divisor: float = Field(1.0, gt=0, allow_inf_nan=False, description="divides all recovery times; for tests")

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _in_any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("redis_url")
    @classmethod
    def _can_be_read(cls, value: str | None) -> str | None:
        """What each library would take in its own way, or fail at with the password in its words."""
        try:
            parts = urlsplit(value or "")
            is_whole = parts.port != 0 and re.fullmatch(r"/?[0-9]*", parts.path) and not parts.fragment
        except ValueError:
            is_whole = False
        if not is_whole:
            raise ValueError("expected redis://:PASSWORD@HOST:PORT/NUMBER; in a password / is %2F, # is %23, ? is %3F")
        return value

    @field_validator("flower_auth")
    @classmethod
    def _user_and_password(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(USER_AND_PASSWORD, value.get_secret_value()):
            raise ValueError("must be user:password, in ASCII without spaces")
        return value

    @cached_property
    def times(self) -> Times:
        """The recovery times in force."""
        return Times().divided(self.time_divisor)

    @property
    def run_dir(self) -> Path:
        """Where the running pool keeps its files."""
        return self.home / "run"

    @property
    def pool_file(self) -> Path:
        """What a running pool says of itself: pid, Redis URL (readable by its owner only)."""
        return self.run_dir / "pool.json"

    @property
    def flower_auth_file(self) -> Path:
        """Where the user and the password of Flower's pages are kept when none was given (for its owner only)."""
        return self.run_dir / "flower.auth"

    @property
    def flower_auth_place(self) -> str:
        """Where a person finds them."""
        return "OFFLOAD_FLOWER_AUTH" if self.flower_auth is not None else str(self.flower_auth_file)

    @property
    def flower_sign(self) -> Path:
        """A file that Flower touches every second while it serves."""
        return self.run_dir / "flower.alive"

    @property
    def api_sign(self) -> Path:
        """A file that the HTTP API touches every second while it serves."""
        return self.run_dir / "api.alive"

    @property
    def helper_log(self) -> Path:
        """Where `anchor-offload` appends its telemetry."""
        return (self.log or self.home / "offload.jsonl").expanduser().absolute()

    def ledger(self) -> str | Path:
        """The ledger: the address that was given, or the file in the home."""
        return self.database_url or self.home / "ledger.db"

    def broker_url(self) -> str | None:
        """Redis's address, or None while no pool runs here and none was named."""
        if self.redis_url:
            return self.redis_url
        try:
            said = json.loads(self.pool_file.read_bytes())
        except (OSError, ValueError):
            return None
        url = said.get("redis_url") if isinstance(said, dict) else None
        return url if isinstance(url, str) else None


def unknown_variables() -> list[str]:
    """OFFLOAD_ variables that mean nothing; a typo there would otherwise be silent."""
    known = {f"OFFLOAD_{name.upper()}" for name in Settings.model_fields}
    return sorted(k for k in os.environ if k.startswith("OFFLOAD_") and k not in known)


def load_settings() -> Settings:
    """The settings, or a ConfigError that names the variable."""
    try:
        settings = Settings()
    except ValidationError as error:
        lines = [
            f"OFFLOAD_{str(e['loc'][0]).upper()}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors(include_input=False)
        ]
        raise ConfigError("\n".join(lines)) from None
    try:
        settings.home = settings.home.expanduser().absolute()
    except RuntimeError:
        raise ConfigError("OFFLOAD_HOME: there is no such user's home") from None
    return settings
