"""The proof is itself proven: with one promise switched off, chaos turns red."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.broken import BREAKS, copy
from tests.support.pool import clean_environment


@pytest.mark.parametrize("name", sorted(BREAKS))
def test_chaos_turns_red_when_a_promise_is_switched_off(name: str, tmp_path: Path) -> None:
    """Without the fence check, the sweep or the one-result rule, a few strikes end in exit 1 and a red row."""
    made = copy(name, tmp_path)
    ran = _chaos(tmp_path, "--faults", made.faults, "--runs", str(made.runs), "--fail-fast")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "RED: " in ran.stdout, ran.stdout + ran.stderr
    assert "the program broke" not in ran.stdout, ran.stdout
    assert made.sign in ran.stdout, ran.stdout + ran.stderr


def _chaos(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = clean_environment() | {"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "tests.chaos", "--pools", "1", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
