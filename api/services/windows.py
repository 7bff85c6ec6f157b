"""Windows' scheduled tasks. What runs there is a role whose servers are elsewhere: `up` needs Linux or macOS."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from api.services import ROLES, Place, Role
from api.services import role as role_of

_SPACE = "http://schemas.microsoft.com/windows/2004/02/mit/task"
_FOLDER = "Offload"


class Windows:
    """Task definitions in the user's AppData, registered with the Task Scheduler."""

    program = "schtasks"

    def path(self, role: Role, place: Place) -> Path:
        """Where a role's definition is."""
        return _folder(place) / f"{_file(role)}.xml"

    def name(self, role: Role) -> str:
        """The task's path."""
        return f"\\{_FOLDER}\\{_file(role)}"

    def content(self, role: Role, place: Place) -> bytes:
        """The definition, in the UTF-16 that schtasks reads."""
        task = ElementTree.Element("Task", {"version": "1.2", "xmlns": _SPACE})
        _put(task, "RegistrationInfo/Description", f"Offload: {role.says}")
        _put(task, "Triggers/LogonTrigger/Enabled", "true")
        _put(task, "Triggers/LogonTrigger/UserId", _user(place))  # at anybody's is an administrator's to register
        for name, value in {
            "MultipleInstancesPolicy": "IgnoreNew",
            "DisallowStartIfOnBatteries": "false",
            "StopIfGoingOnBatteries": "false",
            "ExecutionTimeLimit": "PT0S",
        }.items():
            _put(task, f"Settings/{name}", value)
        _put(task, "Settings/RestartOnFailure/Interval", "PT1M")
        _put(task, "Settings/RestartOnFailure/Count", "999")
        _put(task, "Actions/Exec/Command", place.program[0])
        _put(task, "Actions/Exec/Arguments", subprocess.list2cmdline([*place.program[1:], *role.arguments]))
        text = ElementTree.tostring(task, encoding="unicode")
        return f'<?xml version="1.0" encoding="UTF-16"?>\n{text}\n'.encode("utf-16")

    def replaces(self, role: Role, place: Place) -> Sequence[Sequence[str]]:
        """Nothing: /Create does it by /F."""
        return ()

    def enable(self, role: Role, place: Place) -> Sequence[Sequence[str]]:
        """Register it and start it."""
        create = (self.program, "/Create", "/F", "/TN", self.name(role), "/XML", str(self.path(role, place)))
        return [create, (self.program, "/Run", "/TN", self.name(role))]

    def disable(self, role: Role, place: Place) -> Sequence[Sequence[str]]:
        """Stop it and forget it."""
        end = (self.program, "/End", "/TN", self.name(role))
        return [end, (self.program, "/Delete", "/F", "/TN", self.name(role))]

    def asks(self, role: Role, place: Place) -> Sequence[str]:
        """Its state, by PowerShell: schtasks says it in the language of the machine."""
        task = f"Get-ScheduledTask -TaskPath '\\{_FOLDER}\\' -TaskName '{_file(role)}' -ErrorAction Stop"
        return ("powershell", "-NoProfile", "-NonInteractive", "-Command", f"({task}).State")

    def runs(self, said: str) -> bool:
        """One that is registered may be Ready, Queued or Disabled."""
        return said.strip() == "Running"

    def installed(self, place: Place) -> list[Role]:
        """The roles whose definitions are there."""
        workers = [p.stem.removeprefix("worker ") for p in _folder(place).glob("worker *.xml")]
        there = [one for one in ROLES.values() if self.path(one, place).exists()]
        return [*there, *(role_of(f"worker:{provider}") for provider in sorted(workers))]


def _file(role: Role) -> str:
    return role.name + (f" {role.provider}" if role.provider else "")


def _folder(place: Place) -> Path:
    return place.home / "AppData" / "Local" / "offload" / "services"


def _user(place: Place) -> str:
    """Whose log-on it is: who installs it, or, where files are written for another machine, whose home that is."""
    domain, name = os.environ.get("USERDOMAIN", ""), os.environ.get("USERNAME", "")
    if sys.platform == "win32" and place.home == Path.home() and name:
        return f"{domain}\\{name}" if domain else name
    return place.home.name


def _put(task: ElementTree.Element, way: str, value: str) -> None:
    """Put a value at the end of a way of elements, which are made where they are not there."""
    at = task
    for name in way.split("/"):
        found = at.find(name)
        at = ElementTree.SubElement(at, name) if found is None else found
    at.text = value
