"""What runs on Windows is tried without what only Unix has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pool import clean_environment

#: libraries look at sys.platform, which says Linux here, so those that need them come first
WITHOUT_UNIX = """
import asyncio, importlib, multiprocessing, os, pkgutil, subprocess, sys
sys.modules.update(dict.fromkeys(("fcntl", "grp", "pwd", "pty", "resource", "termios", "tty", "uvloop")))
del os.O_NONBLOCK
import api.commands, api.helpers
for room in (api.commands, api.helpers):
    for module in pkgutil.iter_modules(room.__path__, room.__name__ + "."):
        importlib.import_module(module.name)
from api.helpers import telemetry
telemetry.append("code", "offload", "none", 1.0, 0)
for words in (["status"], ["down"], ["up"]):
    print(api.commands.run_cli(words))
"""


@pytest.mark.slow
def test_commands_need_nothing_that_only_unix_has(tmp_path: Path) -> None:
    """Each command and helper can be imported; there is no pool, `up` says why, and telemetry is written."""
    given = clean_environment() | {"OFFLOAD_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-P", "-c", WITHOUT_UNIX], env=given, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[-3:]) == (0, ["0", "0", "1"]), done.stderr
    assert "`offload up` needs Linux or macOS" in done.stderr
    assert (tmp_path / "offload.jsonl").read_text().endswith('"exit_code":0}\n')
