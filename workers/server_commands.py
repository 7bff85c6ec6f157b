"""Runs what a provider's configuration names to start, stop or look at the model server of this node.

Each runs in a session of its own, so that what `start` leaves behind outlives the worker, and without Offload's own
variables, which hold addresses with passwords.  What it prints is kept nowhere.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

#: seconds `start` and `stop` may take, and `status`
COMMAND_S, STATUS_S = 120.0, 10.0
#: seconds between two looks whether a command has ended
LOOK_S = 0.1


class Ended(Exception):
    """The worker stops; the command goes on without it."""


def run_command(argv: Sequence[str], within_s: float, ended: threading.Event) -> str:
    """Run a command to its end: how it failed, in words, empty for status 0. Raises Ended once `ended` is set."""
    try:
        process = subprocess.Popen(
            list(argv),
            cwd="/",
            env={k: v for k, v in os.environ.items() if not k.startswith("OFFLOAD_")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        return f"cannot be started ({error.strerror})"
    until = time.monotonic() + within_s
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(LOOK_S)
            return f"ended with status {status}" if status else ""
        if ended.is_set():
            raise Ended
        if time.monotonic() > until:
            _kill(process)
            return f"did not end within {within_s:g} s and was killed"


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
