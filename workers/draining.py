"""Follows what people want of this node: drains, unloads, stops its model server, starts it, serves again.

    serving ──► draining ──► drained ──► stopped      wanted: drained, stopped
       ▲  takes nothing  models    server│
       └── new ──────────unloaded──stopped            wanted: serving; the server is started where a command is named

A thread of its own looks at the wish in the ledger: a command may take minutes, and the heartbeat goes on meanwhile.
What failed for one wish is not tried again before the next one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from enum import Enum, auto

import structlog
from sqlalchemy.exc import SQLAlchemyError

from tasks.errors import CallError
from tasks.ledger import nodes
from tasks.ledger.claims import Identity
from tasks.ledger.database import Database
from tasks.ledger.nodes import Phase, Wanted, Wish
from tasks.providers import Provider
from tasks.settings import Times
from workers.backends import Health
from workers.loop import Loop
from workers.server_commands import COMMAND_S, STATUS_S, run_command

#: seconds between two looks whether everything has ended, at most
LOOK_S = 0.2
#: tries to unload, and seconds between them
UNLOADS, UNLOAD_AGAIN_S = 3, 1.0
#: seconds a server may take to unload, and to say how it is
UNLOAD_S, PROBE_S = 60.0, 30.0
#: seconds after `start` in which a server should answer; it is waited for beyond them, too
ANSWERS_WITHIN_S = 120.0
#: seconds the worker waits for this thread when it stops
JOIN_S = 2.0

log = structlog.get_logger(__name__)


class Step(Enum):
    """What a worker does next for a wish."""

    HOLD = auto()
    EMPTY = auto()
    STOP = auto()
    SERVE = auto()


def next_step(wanted: Wanted, phase: Phase) -> Step | None:
    """The step that brings a phase nearer to what is wanted; None when it is there."""
    if wanted is Wanted.SERVING:
        return None if phase is Phase.SERVING else Step.SERVE
    match phase:
        case Phase.SERVING:
            return Step.HOLD
        case Phase.DRAINING:
            return Step.EMPTY
        case Phase.DRAINED if wanted is Wanted.STOPPED:
            return Step.STOP
    return None


class Draining(threading.Thread):
    """One worker's way through the phases. models: those it serves; room: told when others may take its jobs."""

    def __init__(
        self,
        db: Database,
        loop: Loop,
        me: Identity,
        provider: Provider,
        models: Collection[str],
        times: Times,
        room: Callable[[], None],
    ) -> None:
        super().__init__(name="draining", daemon=True)
        self._db = db
        self._loop = loop
        self._me = me
        self._provider = provider
        self._models = models
        self._times = times
        self._room = room
        self._ended = threading.Event()
        self._phase, self._detail = Phase.SERVING, ""
        self._said: tuple[Phase, str, int] | None = None
        self._complaint: tuple[Wish, str] | None = None  #: to be written
        self._unloads = 0
        self._new = True  #: nothing was done yet
        # the wish (its `at`) for which a command failed, for which `start` was run, and which was complained of
        self._failed = self._start_ran = self._complained = -1.0
        self._start_ran_at = 0.0  #: monotonic
        self._looked_at = 0.0  #: the wish (its `at`) to serve for which a serving worker's server was looked at

    def begin(self) -> None:
        """Take up what is wanted already; before the loop starts."""
        wish = nodes.wish(self._db, self._me.node)
        self._looked_at = wish.at
        if wish.wanted is not Wanted.SERVING:
            self._become(Phase.DRAINING)
        elif wish.at and self._provider.start:  # somebody wants it to serve: its server may have to be started
            self._become(Phase.DRAINED)
        self._say()

    def stop(self) -> None:
        """End the thread; a command under way goes on without it."""
        self._ended.set()
        self.join(JOIN_S)

    def run(self) -> None:
        while not self._ended.wait(self._pause()):
            try:
                self._follow(nodes.wish(self._db, self._me.node))
                self._say()
            except SQLAlchemyError as error:
                log.error("what is wanted of the node could not be looked up", error=type(error).__name__)
            except Exception:
                if self._ended.is_set():  # the loop or the ledger was closed under it
                    return
                raise

    def _pause(self) -> float:
        often = self._phase is Phase.DRAINING
        return min(LOOK_S, self._times.cancel_check) if often else self._times.cancel_check

    def _follow(self, wish: Wish) -> None:
        new, self._new = self._new, False
        if new and wish.wanted is Wanted.STOPPED and self._provider.has_server and self._server_trouble():
            self._become(Phase.STOPPED)  # another process of this worker has stopped it already
        if wish.at != self._looked_at:
            self._looked_at = wish.at
            if wish.wanted is Wanted.SERVING and self._phase is Phase.SERVING and self._loop.gate.away:
                self._become(Phase.DRAINED)  # its server has gone by itself, and somebody wants it back
        match next_step(wish.wanted, self._phase):
            case Step.HOLD:
                self._become(Phase.DRAINING)
            case Step.EMPTY:
                self._empty()
            case Step.STOP if self._failed != wish.at:
                self._stop_server(wish)
            case Step.SERVE if self._failed != wish.at:
                self._serve(wish)

    def _become(self, phase: Phase, trouble: str = "") -> None:
        if phase is not self._phase:
            log.info("the worker's phase changes", worker=self._me.name, phase=phase.value)
            self._unloads = 0
        self._phase, self._detail = phase, "; ".join(filter(None, (self._words(phase), trouble)))
        if phase is Phase.SERVING:
            self._loop.release()
        else:
            self._loop.hold(self._detail, stopped=phase is Phase.STOPPED)

    def _words(self, phase: Phase) -> str:
        return {
            Phase.SERVING: "",
            Phase.DRAINING: "its node is being drained",
            Phase.DRAINED: f"its node is drained: offload resume {self._me.node}",
            Phase.STOPPED: f"its node is stopped: offload nodes start {self._me.node}",
        }[phase]

    def _complain(self, wish: Wish, trouble: str) -> None:
        """Tell once why a wish is not fulfilled."""
        if self._complained != wish.at:
            log.error("what is wanted of the node cannot be done", worker=self._me.name, trouble=trouble)
            self._complained, self._complaint = wish.at, (wish, trouble)
            self._become(self._phase, trouble)

    def _say(self) -> None:
        """Write down what the ledger does not know yet."""
        in_flight = 0 if self._phase is Phase.SERVING else self._loop.in_flight  # the heartbeat counts what serves
        now = self._phase, self._detail, in_flight
        if self._said != now:
            nodes.set_phase(self._db, self._me, *now)
            self._said = now
        if self._complaint is not None:
            nodes.complain(self._db, self._me, *self._complaint)
            self._complaint = None

    # --- the steps ---------------------------------------------------------------------------------------

    def _empty(self) -> None:
        """Once nothing runs any more, ask the server to unload."""
        if self._loop.busy or len(self._loop.hand):
            return
        try:
            asked = self._loop.with_backend(lambda backend: backend.unload(self._models), UNLOAD_S)
            trouble = "" if asked or not self._provider.has_server else "its server has no way to be asked to unload"
        except (CallError, TimeoutError) as error:
            self._unloads += 1
            if self._unloads < UNLOADS:
                self._ended.wait(UNLOAD_AGAIN_S)
                return
            trouble = f"its models could not be unloaded: {error or 'no answer in time'}"
        self._become(Phase.DRAINED, trouble)
        self._room()

    def _stop_server(self, wish: Wish) -> None:
        if self._provider.has_server:
            trouble = self._trouble_of("stop", self._provider.stop)
            if trouble:
                self._failed = wish.at
                self._complain(wish, trouble)
                return
        self._become(Phase.STOPPED)

    def _serve(self, wish: Wish) -> None:
        """Take work again; where `start` is named, only once the server answers."""
        if self._provider.start:
            if self._start_ran != wish.at and not self._start_server(wish):
                return
            if trouble := self._server_trouble():
                if time.monotonic() - self._start_ran_at > ANSWERS_WITHIN_S:
                    self._complain(wish, f"`start` has run, and its server does not answer: {trouble}")
                self._become(self._phase, f"`start` has run: {trouble}")
                return
        elif self._provider.has_server and (trouble := self._server_trouble()):
            self._complain(wish, f"provider {self._provider.name} names no `start` command: {trouble}")
        self._become(Phase.SERVING)

    def _start_server(self, wish: Wish) -> bool:
        """Run `start` where it is needed; False when it failed."""
        trouble = ""
        if self._phase is Phase.STOPPED or self._server_trouble():
            trouble = self._trouble_of("start", self._provider.start)
        if trouble:
            self._failed = wish.at
            self._complain(wish, trouble)
            return False
        self._start_ran, self._start_ran_at = wish.at, time.monotonic()
        return True

    def _server_trouble(self) -> str:
        """What keeps the server from being well, by `status` and by a probe; empty when nothing does."""
        if self._provider.status and (trouble := self._trouble_of("status", self._provider.status, STATUS_S)):
            return trouble
        try:
            probe = self._loop.with_backend(lambda backend: backend.probe(), PROBE_S)
        except (CallError, TimeoutError) as error:
            return str(error) or "it does not say how it is"
        return probe.detail or probe.health if probe.health in (Health.OFFLINE, Health.MISCONFIGURED) else ""

    def _trouble_of(self, name: str, argv: Sequence[str], within_s: float = COMMAND_S) -> str:
        if not argv:
            return f"provider {self._provider.name} names no `{name}` command"
        trouble = run_command(argv, within_s, self._ended)
        return trouble and f"`{name}` of provider {self._provider.name} {trouble}"
