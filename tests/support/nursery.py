"""Starts roles from a process that has imported everything: a fork instead of two seconds of a core for imports.

What a role runs is the command itself (`offload worker …`), with its own environment, log and signals.  A nursery has
no thread, so that it may fork; its children end with it, and it ends when whoever asks it closes the other end.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from api.embedded.leash import die_with_parent

#: what roles import when they run
NEEDED = (
    "api.commands.roles",
    "api.http.serving",
    "celery.apps.worker",
    "celery.backends.redis",
    "celery.concurrency.thread",
    "celery.events.snapshot",
    "celery.fixups.django",
    "celery.loaders.app",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.strategy",
    "kombu.asynchronous.hub",
    "kombu.transport.redis",
    "scheduler.process",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "workers.backends.command",
    "workers.backends.ollama_api",
    "workers.process",
)
#: seconds until a nursery has imported all that, on a busy machine
READY_S = 120.0

#: what a child does with its environment before it runs its command
Enter = Callable[[Mapping[str, str]], None]


def prepare() -> None:
    """Import what every role needs, once for all that is forked from this process."""
    for name in NEEDED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # children need not look through it again


class Nursery:
    """Our end of it, and a thread that listens there."""

    def __init__(self, ours: socket.socket) -> None:
        self._ours = ours
        self._lock = threading.Lock()
        self._told = threading.Condition()
        self._started: list[int] = []
        self._ended: dict[int, int] = {}
        self._gone = False
        self._reader = ours.makefile("rb")

    def open(self) -> None:
        """Begin to listen; a thread of ours does."""
        threading.Thread(target=self._listen, name="nursery", daemon=True).start()

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], log: Path, largest_file: int | None = None
    ) -> int:
        """Start `offload ARGUMENTS`; its process id. largest_file: bytes, as on a disk that is full."""
        order: dict[str, object] = {"arguments": list(arguments), "environment": dict(environment), "log": str(log)}
        order["largest_file"] = largest_file
        with self._lock, self._told:
            self._ours.sendall(json.dumps(order).encode() + b"\n")
            self._told.wait_for(lambda: self._started or self._gone, timeout=READY_S)
            assert self._started, "the nursery has ended" if self._gone else "the nursery does not answer"
            return self._started.pop()

    def status(self, pid: int) -> int | None:
        """A child's exit status, negative for a signal; None while it lives."""
        return self._ended.get(pid)

    def wait(self, pid: int, timeout: float | None) -> int | None:
        """The same once it has ended, or when the time is over."""
        with self._told:
            self._told.wait_for(lambda: pid in self._ended, timeout)
            return self._ended.get(pid)

    def close(self) -> None:
        """End it, and whatever still lives in it."""
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        self._ours.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self._reader:
                said = json.loads(line)
                with self._told:
                    if "started" in said:
                        self._ended.pop(said["started"], None)  # numbers come again
                        self._started.append(said["started"])
                    else:
                        self._ended[said["ended"]] = said["status"]
                    self._told.notify_all()
        with self._told:
            self._gone = True
            self._told.notify_all()


def forked(enter: Enter) -> Nursery:
    """A nursery that is a fork of this process, which is prepared and has no thread."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        die_with_parent()
        _serve(theirs, enter)
    theirs.close()
    return Nursery(ours)


class Child:
    """A role from a nursery, as subprocess.Popen shows one."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self.returncode: int | None = None  #: as Popen's: known once somebody has looked

    def poll(self) -> int | None:
        """The exit status, None while it lives."""
        if self.returncode is None:
            self.returncode = self._nursery.status(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; subprocess.TimeoutExpired when there is none in time."""
        if self.returncode is None:
            self.returncode = self._nursery.wait(self.pid, timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a role", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it lives."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        self.send_signal(signal.SIGKILL)


#: a role that runs, however it was started
Role = subprocess.Popen[bytes] | Child


def started(
    arguments: Sequence[str], environment: Mapping[str, str], log: Path, *before: str
) -> subprocess.Popen[bytes]:
    """Start `offload ARGUMENTS` by Python's own start, for what is measured. before: what its command begins with."""
    command = [*before, sys.executable, "-m", "api", *arguments]
    with log.open("ab") as file:
        return subprocess.Popen(command, env=dict(environment), stdout=file, stderr=file)


def child(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Child:
    """Start `offload ARGUMENTS` from this process's nursery."""
    nursery = _own()
    return Child(nursery, nursery.start(arguments, environment, log))


@functools.cache
def _own() -> Nursery:
    """A nursery that is a process of its own: whoever asks has threads."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(theirs.fileno())],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    nursery = Nursery(ours)
    nursery.open()
    atexit.register(process.wait)
    atexit.register(nursery.close)  # first
    return nursery


def _serve(theirs: socket.socket, enter: Enter) -> None:
    """Be the nursery until the other end is closed; no return."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    orders = theirs.makefile("rb")
    selector = selectors.DefaultSelector()
    selector.register(reader, selectors.EVENT_READ)
    selector.register(theirs, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fd == reader:
                os.read(reader, 4096)
                continue
            line = orders.readline()
            if not line:
                os._exit(0)
            pid = os.fork()
            if pid == 0:
                for end in (reader, writer):
                    os.close(end)
                orders.close()
                theirs.close()
                selector.close()
                _become(json.loads(line), enter)
            _say(theirs, {"started": pid})
        _bury(theirs)


def _bury(theirs: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            _say(theirs, {"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def _say(theirs: socket.socket, what: Mapping[str, int]) -> None:
    with contextlib.suppress(OSError):
        theirs.sendall(json.dumps(what).encode() + b"\n")


def _become(order: Mapping[str, object], enter: Enter) -> None:
    """Turn into the role, and end with it as Python does: without the frames of whoever forked it."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    die_with_parent()
    environment = order["environment"]
    assert isinstance(environment, dict)
    os.environ.clear()
    os.environ.update(environment)
    enter(environment)
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(str(order["log"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for source, sink in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, sink)
    if isinstance(largest := order.get("largest_file"), int):
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    from api.commands import main

    arguments = order["arguments"]
    assert isinstance(arguments, list)
    sys.argv = ["offload", *arguments]
    status: object = 70
    try:
        main()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]  # waits for its threads
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    prepare()
    _serve(socket.socket(fileno=int(sys.argv[1])), lambda environment: None)
