"""Ctrl-C leaves the work running, and says how to come back to it."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Self

#: exit code of what Ctrl-C ended
INTERRUPTED = 130
#: seconds until an interrupt that Python swallowed comes again: what swallowed it is over by then
AGAIN_S = 0.05


class GoingOn:
    """A batch is submitted and watched in here; Ctrl-C ends with 130 and names it.

    From `opening` until `begun` a first Ctrl-C waits, as nobody knows yet whether there is a batch to come back to; a
    second one never waits. what: it is called; look, back: commands that show it, and come back to it, by its id.
    """

    def __init__(
        self,
        batch_id: str | None = None,
        what: str = "batch",
        look: str = "offload status {0}",
        back: str = "offload wait {0}; offload results {0}",
    ) -> None:
        self._batch_id, self._what, self._look, self._back = batch_id, what, look, back
        self._holds = self._asked = False
        self._handler = signal.getsignal(signal.SIGINT)

    def __enter__(self) -> Self:
        if self._handler is signal.default_int_handler:  # under nohup Ctrl-C means nothing, and goes on to
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._handler)
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            with suppress(OSError):  # nobody may be reading
                print(f"\n{self._words()}", file=sys.stderr)
            sys.exit(INTERRUPTED)

    def _words(self) -> str:
        if self._batch_id is None:
            return "nothing was submitted"
        if self._holds:  # not even its commit was waited for
            return f"it is not known whether the {self._what} was submitted: {self._look.format(self._batch_id)}"
        return f"the {self._what} goes on; come back with: {self._back.format(self._batch_id)}"

    def opening(self, batch_id: str) -> None:
        """The next commit makes the promise."""
        self._batch_id, self._holds = batch_id, True

    def begun(self, batch_id: str) -> None:
        """The batch is there; raises KeyboardInterrupt where it was asked for meanwhile."""
        self._batch_id, self._holds = batch_id, False
        if self._asked:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._holds and not self._asked:
            self._asked = True
            return
        raise KeyboardInterrupt


def heed_swallowed() -> None:
    """An interrupt that arrives while Python runs a destructor is only reported by it: have it come again."""
    report = sys.unraisablehook

    def hook(what: sys.UnraisableHookArgs) -> None:
        if issubclass(what.exc_type, KeyboardInterrupt):
            main = threading.main_thread().ident
            timer = threading.Timer(AGAIN_S, signal.pthread_kill, (main, signal.SIGINT))  # wakes it where it sleeps
            timer.daemon = True
            timer.start()
        else:
            report(what)

    sys.unraisablehook = hook
