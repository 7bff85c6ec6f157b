"""launchd's agents, on macOS."""

from __future__ import annotations

import os
import plistlib
import re
from collections.abc import Sequence
from pathlib import Path

from api.services import ROLES, Place, Role, environment_file
from api.services import role as role_of
from api.services.systemd import STOP_S

_PREFIX = "io.offload."
#: launchd reads no file of variables: a shell does, as systemd would, and becomes the role. $0 is the file; nothing in
#: it is run, and what is no NAME=value is passed over.
_WITH_ENVIRONMENT = r"""
if [ -r "$0" ]; then
    while IFS= read -r line || [ -n "$line" ]; do
        name=${line%%=*} value=${line#*=}
        case $name in "$line" | '' | [0-9]* | *[!A-Za-z0-9_]*) continue ;; esac
        case $value in \"*\" | \'*\') value=${value#?} value=${value%?} ;; esac
        export "$name=$value"
    done <"$0"
fi
exec "$@"
"""


class Launchd:
    """Property lists in the user's LaunchAgents; what a role says goes to the user's Logs."""

    program = "launchctl"

    def path(self, role: Role, place: Place) -> Path:
        """Where a role's property list is."""
        return _folder(place) / f"{self.name(role)}.plist"

    def name(self, role: Role) -> str:
        """The agent's label."""
        return f"{_PREFIX}{role.name}" + (f".{role.provider}" if role.provider else "")

    def content(self, role: Role, place: Place) -> bytes:
        """The property list."""
        file = str(environment_file(place))
        return plistlib.dumps(
            {
                "Label": self.name(role),
                "ProgramArguments": ["/bin/sh", "-c", _WITH_ENVIRONMENT, file, *place.program, *role.arguments],
                "RunAtLoad": True,
                "KeepAlive": True if role.lasts else {"SuccessfulExit": False},
                "ThrottleInterval": 5,
                "ExitTimeOut": STOP_S,
                "ProcessType": "Background",
                "Umask": 0o077,
                "StandardErrorPath": str(place.home / "Library" / "Logs" / f"{self.name(role)}.log"),
            }
        )

    def replaces(self, role: Role, place: Place) -> Sequence[Sequence[str]]:
        """Unload it: a label that is loaded cannot be loaded."""
        return self.disable(role, place)

    def enable(self, role: Role, place: Place) -> Sequence[Sequence[str]]:
        """Load it, which starts it."""
        return [(self.program, "bootstrap", _domain(), str(self.path(role, place)))]

    def disable(self, role: Role, place: Place) -> Sequence[Sequence[str]]:
        """Stop it and unload it."""
        return [(self.program, "bootout", f"{_domain()}/{self.name(role)}")]

    def asks(self, role: Role, place: Place) -> Sequence[str]:
        """Whether it is loaded."""
        return (self.program, "print", f"{_domain()}/{self.name(role)}")

    def runs(self, said: str) -> bool:
        """One that is loaded may have ended, or wait to be started again."""
        return re.search(r"^\s*state = running$", said, re.MULTILINE) is not None

    def installed(self, place: Place) -> list[Role]:
        """The roles whose property lists are there."""
        workers = [p.stem.removeprefix(f"{_PREFIX}worker.") for p in _folder(place).glob(f"{_PREFIX}worker.*.plist")]
        there = [one for one in ROLES.values() if self.path(one, place).exists()]
        return [*there, *(role_of(f"worker:{provider}") for provider in sorted(workers))]


def _folder(place: Place) -> Path:
    return place.home / "Library" / "LaunchAgents"


def _domain() -> str:
    return f"gui/{os.getuid()}"
