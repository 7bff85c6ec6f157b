"""Small JSON files in OFFLOAD_HOME/run, each written whole; where the home cannot be written, nothing is kept."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any


def home() -> str:
    """OFFLOAD_HOME, as tasks/settings.py has it."""
    path = os.environ.get("OFFLOAD_HOME")
    if not path:
        import platformdirs  # only here: a few milliseconds

        path = platformdirs.user_data_dir("offload", appauthor=False)
    return os.path.join(os.getcwd(), os.path.expanduser(path))


def read(name: str) -> dict[str, Any]:
    """What a file holds; empty where there is none that can be read."""
    try:
        with open(os.path.join(home(), "run", name), "rb") as file:
            value = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write(name: str, value: dict[str, Any]) -> None:
    """Replace a file, or leave it as it is; readable by its owner only."""
    folder = os.path.join(home(), "run")
    partial = os.path.join(folder, f"{name}.{os.getpid()}")
    with suppress(OSError):
        make_folder(home())
        make_folder(folder)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(value, file)
        os.replace(partial, os.path.join(folder, name))
        return
    with suppress(OSError):
        os.unlink(partial)


def make_folder(path: str) -> None:
    """Make a folder that is its owner's alone; one that is there keeps its mode."""
    with suppress(FileExistsError):
        os.makedirs(path, mode=0o700)
