"""Starts roles from a process that has imported everything: a fork instead of three seconds of imports.

What a role runs is the command itself (`offload worker …`), with its own environment, log and signals.  The nursery is
forked before the pool's program has any thread, and ends with it; its children end with the nursery.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from api.embedded.leash import die_with_parent
from tests.chaos.inside import sitecustomize as inside

#: what roles import when they run
NEEDED = (
    "api.commands.roles",
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


def prepare() -> None:
    """Import what every role needs, once for all nurseries that are forked from this process."""
    for name in NEEDED:
        importlib.import_module(name)


class Nursery:
    """Our end of it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            die_with_parent()
            _serve(theirs)
        theirs.close()
        self._ours = ours
        self._lock = threading.Lock()
        self._told = threading.Condition()
        self._started: list[int] = []
        self._ended: dict[int, int] = {}
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
            assert self._told.wait_for(lambda: self._started, timeout=30), "the nursery does not answer"
            return self._started.pop()

    def status(self, pid: int) -> int | None:
        """A child's exit status, negative for a signal; None while it lives."""
        return self._ended.get(pid)

    def close(self) -> None:
        """End it, and whatever still lives in it."""
        self._ours.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self._reader:
                said = json.loads(line)
                with self._told:
                    if "started" in said:
                        self._started.append(said["started"])
                    else:
                        self._ended[said["ended"]] = said["status"]
                    self._told.notify_all()


def _serve(theirs: socket.socket) -> None:
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
                _become(json.loads(line))
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


def _become(order: Mapping[str, object]) -> None:
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
    inside.attach(environment["CHAOS_STRINGS"])
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
