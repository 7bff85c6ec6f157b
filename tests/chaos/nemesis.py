"""Strikes a pool again and again, and judges each strike."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import checks
from tests.chaos.checks import Calls, Wrong
from tests.chaos.client import Client
from tests.chaos.pool import Site
from tests.chaos.strike import Fault, Missed, Strike
from tests.chaos.watching import Idle

#: tries to hit work in flight
TRIES = 4
#: exit statuses of roles: in order, killed by us, ended by the worker's own watchdog for its supervisor
EXPECTED = (0, -signal.SIGKILL, 70)
#: processes that want each core, from which on divided leases run out by themselves: calls are not counted then
OVERLOAD = 4.0


@dataclass
class Report:
    """What came of a strike."""

    fault: int
    seed: int
    counted: bool = False
    recovery: float | None = None
    within: float = 0.0
    uncounted: bool = False  #: calls were not held against their bound: the machine was too busy
    wasted: int = 0
    hit: int = 0
    took: float = 0.0
    load: float = 1.0
    note: str = ""
    wrong: list[Wrong] = field(default_factory=list)


class Nemesis:
    """Strikes one site again and again."""

    def __init__(self, site: Site, client: Client) -> None:
        self.site, self.client = site, client
        self.calls = Calls()
        self._idle = Idle(site, client)
        self._idle.start()
        self._recorded = 0
        self.is_broken = False  #: the pool did not come back after the last strike

    def strike(self, fault: Fault, seed: int) -> Report:
        """One run of a fault: tried again where it hit nothing in flight."""
        self.client.strike += 1
        for _ in range(TRIES):
            report = self._once(fault, seed)
            if report.counted or report.wrong or self.is_broken:
                break
        return report

    def _once(self, fault: Fault, seed: int) -> Report:
        before = time.monotonic()
        self.calls.again(self._logs())  # what happened before is not this strike's
        self._idle.load.begin()
        strike = Strike(self.site, self.client, self._idle, seed, fault)
        report = Report(fault.number, seed)
        try:
            fault.strike(strike)
            if strike.recovery is None:
                strike.recover()
            strike.settle()
        except Missed as missed:
            report.note = str(missed)
        except Exception as error:  # the program's own fault must not end a long run
            where = traceback.format_exc().strip().splitlines()
            words = f"{type(error).__name__}: {error} ({where[-3].strip() if len(where) > 2 else ''})"
            strike.expect(False, words, "time" if str(error).startswith("not within") else "row")
        strike.put_right()
        report.counted = bool(strike.hit) and strike.recovery is not None
        self.is_broken = strike.left_broken
        report.hit, report.recovery = len(strike.hit), strike.recovery
        report.note = strike.note or report.note
        again = self.calls.again(self._logs())
        report.wasted = 0 if strike.provoked else len(again)
        report.load = self._idle.load.mean()
        self._judge(strike, report, again)
        self._idle.excused = set()
        report.took = time.monotonic() - before
        return report

    def _judge(self, strike: Strike, report: Report, again: Sequence[str]) -> None:
        report.within = within = strike.within
        if strike.recovery is not None and strike.recovery > within:
            words = f"recovery took {strike.recovery:.2f} s, its bound is {within:.2f} s at load {report.load:.1f}"
            strike.expect(False, words, "I8")
        report.uncounted = strike.wasted_at_most is not None and report.load >= OVERLOAD
        if strike.wasted_at_most is not None and not report.uncounted:
            wasted = len(set(again) & set(strike.prompts().values()))
            strike.expect(wasted <= strike.wasted_at_most, f"{wasted} calls wasted, more than {strike.wasted_at_most}")
        for words in self._idle.take():
            strike.expect(False, words, "I9")
        for role in self.site.roles:
            odd = [status for status in role.new_deaths() if status not in EXPECTED]
            strike.expect(not odd, f"{role.name} ended with {odd}", "crash")
            strike.expect(not role.lost_a_thread(), f"{role.name} lost a thread: see its log", "crash")
        strike.wrong += checks.told(self.site.db) + checks.fences(self.site.db, self._recorded)
        self._recorded = checks.last_call(self.site.db)
        report.wrong = strike.wrong

    def _logs(self) -> list[Path]:
        return [node.calls for node in self.site.every_node]

    def close(self) -> None:
        """End the watch."""
        self._idle.stop()
