"""A GGUF file for tests, where llama.cpp is installed."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest


def tiny_model(folder: Path) -> Path:
    """Make the tiny model; skips on a laptop that lacks the parts, and fails in CI, which has them all."""
    absent = [name for name in ("gguf", "numpy", "xllamacpp") if importlib.util.find_spec(name) is None]
    if absent:
        reason = f"serving a GGUF file needs {', '.join(absent)}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    from tests.tiny_gguf import make_tiny_gguf

    return make_tiny_gguf(folder / "tiny.gguf")
