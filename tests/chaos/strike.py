"""A fault's row, and a strike: what its function is given to hit a pool and to say what it expects."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import DBAPIError

from tasks.states import TERMINAL, JobState
from tasks.tables import IS_OUT, CallRow, Job
from tests.chaos.checks import Wrong
from tests.chaos.client import Client, Submission
from tests.chaos.pool import Node, Site
from tests.chaos.roles import Role
from tests.chaos.watching import ALLOWANCE_S, SOCKETS_S, Idle
from tests.support.waiting import eventually

calls = CallRow.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]

#: seconds that a role needs to be there again after its process was started
START_S = 2.0
#: seconds beyond the bound after which recovery is no longer waited for
PATIENCE_S = 10.0
#: calls, one after another, in whose time what was hit may end, once it was claimed again
SETTLE_CALLS = 6


@dataclass(frozen=True)
class Fault:
    """A row of FAULTS.md. bound: its seconds, divided as all times; undivided: seconds that no divisor touches."""

    number: int
    words: str
    strike: Callable[[Strike], None]
    bound: float = 45.0
    undivided: float = 0.0

    def says(self, divisor: float) -> float:
        """The bound on recovery under this divisor, on a machine with nothing else to do."""
        return self.bound / divisor + self.undivided

    def within(self, divisor: float, load: float) -> float:
        """The same on a machine on which work takes `load` times as long."""
        return self.bound / divisor + (self.undivided + ALLOWANCE_S) * load


class Missed(Exception):
    """Nothing was in flight: the strike is tried again."""


class Strike:
    """What a fault's function is given: the site, the draw, and words for what it does."""

    def __init__(self, site: Site, client: Client, idle: Idle, seed: int, fault: Fault) -> None:
        self.site, self.client = site, client
        self.random = random.Random(f"{seed} {fault.number}")
        self.wrong: list[Wrong] = []
        self.note = ""
        self.hit: dict[int, int] = {}  #: job -> fence, of what was in the victim's hand
        self.began: float | None = None
        self.recovery: float | None = None
        self.provoked = False  #: further calls are part of it
        self.wasted_at_most: int | None = None
        self.excused: set[str] = set()
        self._fault = fault
        self._idle = idle
        self.left_broken = False  #: the pool is no more use
        self._asked: dict[str, int] = {}
        self._after: list[Callable[[], object]] = []

    @property
    def within(self) -> float:
        """The bound on its recovery, by what is known now."""
        return self._fault.within(self.site.divisor, self._idle.load.mean())

    # --- before --------------------------------------------------------------------------------------------

    def victim(self) -> Node:
        """One of the two ordinary nodes."""
        return self.random.choice(self.site.nodes)

    def others(self, *victims: Node) -> list[Node]:
        """The ordinary nodes that are spared."""
        return [node for node in self.site.nodes if node not in victims]

    def busy(self, nodes: Sequence[Node], share: float = 0.5) -> None:
        """Wait until each of these has work in flight; raises Missed."""
        for node in nodes:
            until = time.monotonic() + 10 + 2 * self.site.ttft
            while node.running < max(1, int(share * min(8, node.in_flight))):
                if time.monotonic() > until:
                    raise Missed(f"{node.name} had nothing to do")
                time.sleep(self.site.look / 10)
        time.sleep(self.random.uniform(0, 0.4 * self.site.ttft))

    def later(self, undo: Callable[[], object]) -> None:
        """Whatever happens, do this at the end of the strike."""
        self._after.append(undo)

    # --- the moment ----------------------------------------------------------------------------------------

    def struck(self, *victims: Node, running: Sequence[Node] | None = None) -> None:
        """Now: what these nodes hold must move. running: the nodes that have to go on, by default the spared ones."""
        names = [node.full_name for node in victims]
        self._mark(jobs.c.state == JobState.RUNNING, jobs.c.worker.in_(names))
        self.excuse(*victims)
        self.goes_on(self.others(*victims) if running is None else running)

    def struck_all(self, running: Sequence[Node] | None = None) -> None:
        """Now: whatever is dispatched or running must move or end."""
        self._mark()
        self.excuse(*self.site.every_node)
        self.goes_on(self.site.nodes if running is None else running)

    def struck_batch(self, submission: Submission) -> None:
        """Now: the live jobs of one batch are what is hit."""
        self._mark(jobs.c.batch_id == submission.id)
        self.goes_on([])

    def _mark(self, *which: ColumnElement[bool]) -> None:
        self.began = time.monotonic()
        if not self.hit:
            self.hit = self.held(*which)

    def held_by(self, worker: str) -> dict[int, int]:
        """Jobs that a worker, by its full name, runs: id -> fence."""
        return self.held(jobs.c.state == JobState.RUNNING, jobs.c.worker == worker)

    def prompts(self) -> dict[int, str]:
        """The jobs that were hit, and how the simulator's log calls what they ask."""
        query = select(jobs.c.id, jobs.c.batch_id, jobs.c.line).where(jobs.c.id.in_(self.hit))
        with self.site.db.read() as c:
            rows = c.execute(query).all()
        return {row.id: self.client.prompt(row.batch_id, row.line) for row in rows}

    def met(self, submission: Submission, line: int, fault: str) -> int:
        """How often the servers played a fault of the simulator to a line, counted from 1; each plays its own."""
        assert submission.id is not None
        prompt = self.client.prompt(submission.id, line)
        played = [c for node in self.site.every_node for c in node.server.simulator.calls(1_000) if c["fault"] == fault]
        return sum(call["prompt"] == prompt for call in played)

    def answered(self, node: Node) -> list[int]:
        """Of the jobs that were hit, those whose answer is on its way or there and not in the ledger; else all."""
        return self.was_answered(node) or list(self.hit)

    def was_answered(self, node: Node) -> list[int]:
        """Of the jobs that were hit, those whose answer is on its way or there and not in the ledger."""
        there = {call["prompt"] for call in node.server.simulator.calls(4 * node.in_flight) if not call["closed"]}
        return [job for job, prompt in self.prompts().items() if prompt in there]

    def overlapping(self, victim: Node) -> list[str]:
        """Prompts for which another node was asked while the victim's own call still ran."""
        own = {c["prompt"]: c for c in victim.server.simulator.calls(4 * victim.in_flight)}
        others = [c for node in self.others(victim) for c in node.server.simulator.calls(1_000) if c["prompt"] in own]
        late = self._idle.load.mean() * 0.1  # a call that is closed is logged a moment later

        def is_within(at: float, call: dict[str, Any]) -> bool:
            return bool(call["at"] < at < call["at"] + call["ms"] / 1000 - late)  # one before it was another's try

        return [c["prompt"] for c in others if is_within(c["at"], own[c["prompt"]])]

    def runs_again(self, ids: Sequence[int]) -> bool:
        """Whether one of these runs under a newer claim."""
        query = select(jobs.c.id, jobs.c.fence).where(jobs.c.id.in_(ids), jobs.c.state == JobState.RUNNING)
        with self.site.db.read() as c:
            return any(row.fence > self.hit[row.id] for row in c.execute(query))

    def stale_calls(self) -> bool:
        """Whether a call under one of the claims that were hit is there, and marked as come too late."""
        query = select(calls.c.job_id, calls.c.fence).where(calls.c.job_id.in_(self.hit), calls.c.stale)
        with self.site.db.read() as c:
            return any(row.fence == self.hit[row.job_id] for row in c.execute(query))

    def held(self, *which: ColumnElement[bool]) -> dict[int, int]:
        """Jobs that are dispatched or running: id -> fence."""
        with self.site.db.read() as c:
            return dict(c.execute(select(jobs.c.id, jobs.c.fence).where(IS_OUT, *which)).tuples().all())

    def goes_on(self, nodes: Iterable[Node]) -> None:
        """From now on these must be asked for something new."""
        self._asked = {node.name: node.asked for node in nodes}

    def excuse(self, *nodes: Node) -> None:
        """These may stand idle until recovery."""
        self.excused |= {node.name for node in nodes}
        self._idle.excused = self.excused

    def breaks_sockets(self) -> None:
        """Connections to Redis may die in silence, from now to the end of this strike."""
        self._idle.sockets_broke()
        self.later(self._idle.sockets_broke)

    def healed(self) -> None:
        """The fault is over; recovery counts from here."""
        self.began = time.monotonic()
        self.goes_on([node for node in self.site.every_node if node.name in self._asked])

    # --- afterwards ----------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Wait for recovery and time it (the package's docstring says what it is)."""
        assert self.began is not None
        while not self._recovered():
            if time.monotonic() > self.began + self.within + PATIENCE_S:
                self.expect(False, f"no recovery: {self._missing()}", "I8")
                break
            time.sleep(self.site.look)
        self.recovery = time.monotonic() - self.began

    def settle(self) -> None:
        """Let what was hit end, so that its calls are counted here and not in the next strike."""
        live = select(jobs.c.id).where(jobs.c.id.in_(self.hit), jobs.c.state.not_in(TERMINAL)).limit(1)
        until = time.monotonic() + SETTLE_CALLS * self.site.ttft
        while time.monotonic() < until:
            with suppress(DBAPIError), self.site.db.read() as c:
                if not self.hit or c.execute(live).first() is None:
                    return
            time.sleep(self.site.look)

    def _recovered(self) -> bool:
        try:
            return not self._pending() and not self._silent()
        except DBAPIError:
            return False

    def _pending(self) -> list[int]:
        if not self.hit:
            return []
        query = select(jobs.c.id, jobs.c.state, jobs.c.fence, jobs.c.run_id).where(jobs.c.id.in_(self.hit))
        with self.site.db.read() as c:
            rows = c.execute(query).all()
        done = {r.id for r in rows if r.state in TERMINAL or r.fence > self.hit[r.id]}
        return sorted(set(self.hit) - done)

    def _silent(self) -> list[str]:
        there = {node.name: node for node in self.site.every_node}
        return [name for name, asked in self._asked.items() if there[name].asked <= asked]

    def _missing(self) -> str:
        with suppress(DBAPIError):
            return f"jobs {self._pending()[:5]}, nodes {self._silent()} {self.site.holders()}"
        return "the ledger does not answer"

    def comes_back(self, nodes: Sequence[Node], within_s: float) -> None:
        """These must be asked for something new within so many seconds from now."""
        self.goes_on(nodes)
        try:
            self.eventually(lambda: not self._silent(), "they work again", within_s)
        except AssertionError:
            self.expect(False, f"{self._silent()} did nothing for {within_s:.0f} s after the fault", "I8")

    def eventually(self, predicate: Callable[[], object], what: str, within_s: float) -> None:
        """Wait for something that has to come; raises AssertionError."""
        eventually(predicate, what, within_s, self.site.look / 4)

    def until(self, predicate: Callable[[], object], what: str, within_s: float) -> None:
        """Wait for something that has to come; red where it does not."""
        try:
            self.eventually(lambda: self.asks(predicate), what, within_s)
        except AssertionError:
            self.expect(False, f"not within {within_s:.1f} s: {what} {self.asks(self.site.holders) or ''}", "I8")

    def expect(self, held: object, words: str, kind: str = "row") -> None:
        """Something this row of FAULTS.md says."""
        if not held:
            self.wrong.append(Wrong(kind, words))

    def ends(self, submission: Submission, within_s: float = 60.0) -> list[dict[str, Any]]:
        """Wait for a batch's end; its result lines."""
        assert submission.id is not None, submission.error
        try:
            self.eventually(lambda: self.asks(lambda: self.client.open_jobs(submission)) == 0, "it ends", within_s)
        except AssertionError:
            self.expect(False, f"{submission.id} has not ended after {within_s:g} s", "I8")
        submission.was_read = True
        return self.client.results(submission)

    def asks(self, question: Callable[[], Any]) -> Any:
        """An answer of the ledger, or None while it is away."""
        with suppress(DBAPIError):
            return question()
        return None

    def dead(self, role: Role, wanted: bool = True) -> None:
        """kill -9; it is started again at once, or only after recovery."""
        role.wanted = wanted
        if pid := role.signal(signal.SIGKILL):
            role.ended(pid, 10)
        if not wanted:
            self.later(role.start)

    def put_right(self) -> None:
        """Undo everything, and wait until the pool is whole."""
        while self._after:
            self._after.pop()()
        before = len(self.wrong)
        try:
            self.site.until_well(self.site.every_node)
            self.comes_back(self.site.nodes, 60 / self.site.divisor + SOCKETS_S)
        except AssertionError as error:
            self.expect(False, f"afterwards {error}", "I8")
        self.left_broken = len(self.wrong) > before
