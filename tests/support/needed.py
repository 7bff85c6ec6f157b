"""Programs that tests need and that do not come with the packages."""

from __future__ import annotations

import os
import shutil

import pytest


def needed(name: str, whence: str) -> str:
    """Where a program is; skips on a laptop that lacks it, and fails in CI, which installs all."""
    path = shutil.which(name)
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not here: it is {whence}")
    return path
