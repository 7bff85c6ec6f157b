"""Services on systems that are not here: their managers' commands and words."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.commands import service
from api.services import ROLES, Place, launchd, windows
from tests.support.cli import Ran, offload

#: a launchctl that knows which labels are loaded, and says of each what its file holds
LAUNCHCTL = """#!/bin/sh
cd "{loaded}"
case $1 in
bootstrap) label=$(basename "$3" .plist); [ ! -e "$label" ] || exit 5; echo running >"$label" ;;
bootout) rm "${{2##*/}}" ;;
print) printf "%s = {{\\n\\tstate = %s\\n\\tpid = 7\\n}}\\n" "$2" "$(cat "${{2##*/}}")" && [ -e "${{2##*/}}" ] ;;
esac
"""


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what is loaded, on a Mac of sorts."""
    for name in ("loaded", "programs", "home"):
        (tmp_path / name).mkdir()
    program = tmp_path / "programs" / "launchctl"
    program.write_text(LAUNCHCTL.format(loaded=tmp_path / "loaded"))
    program.chmod(0o755)
    monkeypatch.setattr(service, "manager", lambda *_: launchd.Launchd())
    return tmp_path / "loaded"


def shell(loaded: Path, *arguments: str) -> Ran:
    folder = loaded.parent
    given = {"HOME": str(folder / "home"), "PATH": f"{folder / 'programs'}:/usr/bin:/bin"}
    return offload(given, "service", *arguments)


def test_an_agent_is_installed_again(loaded: Path) -> None:
    """What is loaded already makes way, so that all roles start, and only one of each."""
    assert shell(loaded, "install", "beat").code == 0
    done = shell(loaded, "install", "beat", "api")
    assert done.code == 0, done.stderr
    assert sorted(path.name for path in loaded.iterdir()) == ["io.offload.api", "io.offload.beat"]


def test_an_agent_that_is_loaded_may_not_run(loaded: Path) -> None:
    """The status is that of its process; one that is not loaded runs no more than one that has ended."""
    assert shell(loaded, "install", "beat", "api", "metrics").code == 0
    (loaded / "io.offload.api").write_text("spawn scheduled")
    (loaded / "io.offload.metrics").unlink()
    runs = shell(loaded, "status", "--json").json
    assert runs == {"io.offload.beat": True, "io.offload.api": False, "io.offload.metrics": False}


def test_a_task_that_is_registered_may_not_run() -> None:
    """PowerShell's words for a task's state are the same in every language of Windows."""
    how = windows.Windows()
    assert [said for said in ("Running\r\n", "Ready\r\n", "Queued", "") if how.runs(said)] == ["Running\r\n"]
    asked = how.asks(ROLES["beat"], Place((), Path()))
    assert asked[-1] == "(Get-ScheduledTask -TaskPath '\\Offload\\' -TaskName 'beat' -ErrorAction Stop).State"
