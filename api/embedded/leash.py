"""Holds one child process: usage `leash.py GRACE_S COMMAND…`, with the supervisor at the other end of stdin.

When stdin ends, because the supervisor was stopped or killed, the child gets SIGTERM, then GRACE_S later SIGKILL
with its whole process group. SIGTERM and SIGINT to the leash mean the same. The leash ends with the child's status.
Only the standard library is imported, so that a leash costs a few megabytes.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time


def die_with_parent() -> None:
    """On Linux the child is killed when even the leash is."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> int:
    """Run the child until it or the supervisor ends."""
    grace, command = float(sys.argv[1]), sys.argv[2:]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    stopping: list[int] = []
    for wanted in (signal.SIGTERM, signal.SIGINT):
        signal.signal(wanted, lambda number, frame: stopping.append(number))
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent)
    selector = selectors.DefaultSelector()
    selector.register(reader, selectors.EVENT_READ)
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
    kill_at = float("inf")
    while child.poll() is None:
        for key, _ in selector.select(timeout=0.5 if kill_at < float("inf") else None):
            if not os.read(key.fd, 4096) and key.fd != reader:
                selector.unregister(key.fd)
                stopping.append(signal.SIGTERM)
        if stopping and kill_at == float("inf"):
            kill_at = time.monotonic() + grace
            child.terminate()
        if time.monotonic() >= kill_at:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.killpg(child.pid, signal.SIGKILL)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main())
