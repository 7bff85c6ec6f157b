"""Roles that start with the user's session and stay: files for the system's own service manager, and its commands.

    systemd.py    Linux: user units; ops/systemd/ holds the same files for who installs by hand
    launchd.py    macOS: agents
    windows.py    Windows: scheduled tasks

Each is a Manager: the file of a role, and the commands that take it into use, out of it, and ask for it.
Settings come from one file, `environment_file`; keys and passwords are never written into a unit. A scheduled task has
the variables of its user instead.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tasks.errors import UsageError

#: what a provider may be called in the name of a service
_PROVIDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Role:
    """A role as a service. lasts: it is started again however it ended; else only when it failed."""

    name: str
    arguments: tuple[str, ...]
    says: str
    lasts: bool = True
    provider: str = ""


ROLES = {
    "pool": Role("pool", ("up",), "the whole pool of this machine", lasts=False),
    "beat": Role("beat", ("beat",), "beat and the scheduler queue's worker"),
    "api": Role("api", ("api",), "the HTTP API"),
    "flower": Role("flower", ("flower",), "Flower, the pool's monitor"),
    "metrics": Role("metrics", ("metrics",), "the exporter for Prometheus"),
}


def role(word: str) -> Role:
    """A role by its name, or `worker:PROVIDER`; raises UsageError."""
    kind, _, provider = word.partition(":")
    if kind == "worker" and _PROVIDER.fullmatch(provider):
        return Role("worker", ("worker", "--provider", provider), f"the worker of {provider}", provider=provider)
    if word in ROLES:
        return ROLES[word]
    raise UsageError(f"no role is named {word!r}; there are {', '.join(ROLES)} and worker:PROVIDER")


@dataclass(frozen=True)
class Place:
    """Where services are installed. program: what runs `offload`. home: the user's folder."""

    program: tuple[str, ...]
    home: Path


def environment_file(place: Place) -> Path:
    """Where services read OFFLOAD_ variables and keys: NAME=value, a line each."""
    return config_folder(place) / "offload" / "environment"


def config_folder(place: Place) -> Path:
    """The user's folder of configuration."""
    given = os.environ.get("XDG_CONFIG_HOME", "")
    return Path(given) if given.startswith("/") else place.home / ".config"


class Manager(Protocol):
    """A system's service manager."""

    #: its command, which is looked for
    program: str

    def path(self, role: Role, place: Place) -> Path:
        """Where a role's file is."""

    def content(self, role: Role, place: Place) -> bytes:
        """What is in it."""

    def name(self, role: Role) -> str:
        """What the manager calls it."""

    def replaces(self, role: Role, place: Place) -> Sequence[Sequence[str]]:
        """Commands before those that start it; they fail where there is nothing to replace, and that is fine."""

    def enable(self, role: Role, place: Place) -> Sequence[Sequence[str]]:
        """Commands that start it now and with each session."""

    def disable(self, role: Role, place: Place) -> Sequence[Sequence[str]]:
        """Commands that stop it and forget it; its file is still there."""

    def asks(self, role: Role, place: Place) -> Sequence[str]:
        """The command that ends with status 0 while the manager has it."""

    def runs(self, said: str) -> bool:
        """Whether what that command said, with status 0, is that it runs."""

    def installed(self, place: Place) -> list[Role]:
        """The roles whose files are there."""


def manager(platform: str = sys.platform) -> Manager:
    """The manager of a platform as Python names it; raises UsageError where there is none."""
    from api.services import launchd, systemd, windows

    managers: dict[str, Manager] = {"linux": systemd.Systemd(), "darwin": launchd.Launchd(), "win32": windows.Windows()}
    if platform not in managers:
        raise UsageError(f"no service manager is known for {platform}; run `offload up` from your own")
    return managers[platform]


def this_program() -> tuple[str, ...]:
    """The `offload` that runs now, as services are to run it."""
    beside = Path(sys.executable).with_name("offload.exe" if sys.platform == "win32" else "offload")
    return (str(beside),) if beside.exists() else (sys.executable, "-P", "-m", "api")
