"""Which processes belong to a pool, found from outside: by the OFFLOAD_HOME in their environment, or by their folder.

Redis writes its title over its environment, and works in its folder of the home.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil


def of_folder(folder: Path) -> list[psutil.Process]:
    """Every living process of a pool whose home is this folder or in it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and _belongs(process, folder):
                found.append(process)
    return found


def _belongs(process: psutil.Process, folder: Path) -> bool:
    homes = process.environ().get("OFFLOAD_HOME"), process.cwd()
    return any(home and Path(home).is_relative_to(folder) for home in homes)


def playing(home: Path, *words: str) -> list[psutil.Process]:
    """The processes of a pool whose command line has all of these words; the leashes that hold them are left out."""
    found = []
    for process in of_folder(home):
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if all(any(word in part for part in line) for word in words) and not any("leash.py" in p for p in line):
                found.append(process)
    return found


def ended(pid: int) -> bool:
    """Whether a process is over, also while nobody has asked how it ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def end_all(home: Path) -> None:
    """kill -9 of whatever a failed test left."""
    for process in of_folder(home):
        with contextlib.suppress(psutil.Error):
            process.kill()
