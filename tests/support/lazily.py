"""Packages that take a second or more to import, and only when something of them is used.

Every test process reads every test file; few of them run those that use such a package.
"""

from __future__ import annotations

import importlib
from typing import Any


class Lazily:
    """Stands for a package under its own name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest looks at whatever is in a test file
            raise AttributeError(name)
        return getattr(importlib.import_module(self._name), name)
