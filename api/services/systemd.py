"""systemd's user units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from api.services import ROLES, Place, Role, config_folder, environment_file

#: seconds a role may take to stop: its drain, the time to record after it, and `offload up`'s own grace for both groups
STOP_S = 120

_UNIT = """\
[Unit]
Description=Offload: {says}
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command}
EnvironmentFile=-{environment}
Restart={restart}
RestartSec=2
KillMode=mixed
TimeoutStopSec={stop_s}
UMask=0077
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""


class Systemd:
    """Units in the user's own folder; `%h` in ops/systemd/ is the user's home."""

    program = "systemctl"

    def path(self, role: Role, place: Place) -> Path:
        """Where a role's unit is; all workers share one."""
        return _folder(place) / (self.name(role) if not role.provider else "offload-worker@.service")

    def name(self, role: Role) -> str:
        """The unit's name."""
        if role.provider:
            return f"offload-worker@{role.provider}.service"
        return "offload.service" if role.name == "pool" else f"offload-{role.name}.service"

    def content(self, role: Role, place: Place) -> bytes:
        """The unit; a worker's has its provider for an instance."""
        arguments = [word if not role.provider or word != role.provider else "%i" for word in role.arguments]
        command = " ".join([*map(quoted, place.program), *arguments])
        says = "the worker of %i" if role.provider else role.says
        restart = "always" if role.lasts else "on-failure"
        environment = escaped(str(environment_file(place)))
        text = _UNIT.format(says=says, command=command, environment=environment, restart=restart, stop_s=STOP_S)
        return text.encode()

    def replaces(self, role: Role, place: Place) -> Sequence[Sequence[str]]:
        """Nothing: a unit that is there is read anew."""
        return ()

    def enable(self, role: Role, place: Place) -> Sequence[Sequence[str]]:
        """Read the units anew; start it now and with each session."""
        reload, enable = (self.program, "--user", "daemon-reload"), (self.program, "--user", "enable", "--now")
        return [reload, (*enable, self.name(role))]

    def disable(self, role: Role, place: Place) -> Sequence[Sequence[str]]:
        """Stop it, now and with each session."""
        return [(self.program, "--user", "disable", "--now", self.name(role))]

    def asks(self, role: Role, place: Place) -> Sequence[str]:
        """Whether it is active."""
        return (self.program, "--user", "is-active", "--quiet", self.name(role))

    def runs(self, said: str) -> bool:
        """It has only what is active."""
        return True

    def installed(self, place: Place) -> list[Role]:
        """Units that are there; of workers those that start with a session."""
        from api.services import role

        found = [one for one in ROLES.values() if self.path(one, place).exists()]
        links = (_folder(place) / "default.target.wants").glob("offload-worker@?*.service")
        workers = sorted(link.name.removeprefix("offload-worker@").removesuffix(".service") for link in links)
        return [*found, *(role(f"worker:{provider}") for provider in workers)]


def quoted(word: str) -> str:
    """A word of ExecStart."""
    plain = escaped(word)
    return '"' + plain.replace('"', '\\"') + '"' if " " in word or '"' in word else plain


def escaped(word: str) -> str:
    """A word in which `%` and backslashes mean themselves; `%h` of ops/systemd/ stays what it is."""
    return word if word.startswith("%h/") else word.replace("\\", "\\\\").replace("%", "%%")


def _folder(place: Place) -> Path:
    return config_folder(place) / "systemd" / "user"
