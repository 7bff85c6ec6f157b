"""Pools side by side: who strikes what next, what comes back, the table, the verdict."""

from __future__ import annotations

import json
import multiprocessing
import os
import selectors
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from tests.chaos import checks
from tests.chaos.client import Client
from tests.chaos.faults import TABLE
from tests.chaos.faults_database import FULL_DISK
from tests.chaos.inside import sitecustomize as inside
from tests.chaos.nemesis import Nemesis
from tests.chaos.pool import Site
from tests.chaos.table import Tally, table
from tests.support.nursery import forked, prepare

#: strikes after which a pool is checked whole and a new one begins, so that its ledger stays small
CAMPAIGN = 150
#: strikes of a fault beyond those asked for, where some hit nothing in flight
SPARE = 10
#: seconds, undivided, in which everything open must end once nothing is broken any more
END_S = 20.0
#: what is added to the seed for each further round
AGAIN_SEED = 1_000_000


@dataclass(frozen=True)
class Order:
    """What was asked for."""

    faults: tuple[int, ...]
    ledgers: tuple[str, ...]
    seed: int
    divisor: float
    runs: int | None
    minutes: float | None
    pools: int
    jobs: int
    keep: Path | None
    fails_fast: bool
    again: int


class Plan:
    """Which fault is next; shared by every pool."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._until = time.monotonic() + 60 * order.minutes if order.minutes else float("inf")
        self._lock = multiprocessing.Lock()
        n = len(order.faults) * len(order.ledgers)
        self._started = multiprocessing.Array("i", n)
        self._counted = multiprocessing.Array("i", n)
        self._running = multiprocessing.Array("i", n)
        self._over = multiprocessing.Value("i", 0)
        self._jobs = multiprocessing.Value("i", 0)

    def take(self, ledger: str) -> tuple[int, int] | None:
        """The next fault for a pool on this ledger and its run's number; None when there is nothing left."""
        with self._lock:
            found = [i for i in self._of(ledger) if self._wants(i)]
            if not found or time.monotonic() > self._until:
                return None
            i = min(found, key=lambda i: self._counted[i] + self._running[i])
            self._started[i] += 1
            self._running[i] += 1
            return self._order.faults[i % len(self._order.faults)], self._started[i] - 1

    def came_back(self, ledger: str, fault: int, counted: bool, jobs: int) -> None:
        """A strike is over."""
        with self._lock:
            i = self._order.ledgers.index(ledger) * len(self._order.faults) + self._order.faults.index(fault)
            self._running[i] -= 1
            self._counted[i] += counted
            self._jobs.value += jobs

    def lost(self) -> None:
        """A pool's process died: what it ran is nobody's."""
        with self._lock:
            for i in range(len(self._running)):
                self._running[i] = 0

    def end(self) -> None:
        """Nothing more is wanted."""
        self._over.value = 1

    def left(self, ledger: str) -> int:
        """Strikes still wanted."""
        if time.monotonic() > self._until:
            return 0
        return sum(self._wants(i) for i in self._of(ledger))

    def _of(self, ledger: str) -> range:
        n, at = len(self._order.faults), self._order.ledgers.index(ledger)
        return range(at * n, (at + 1) * n)

    def _wants(self, i: int) -> bool:
        if self._over.value:
            return False
        if self._order.runs is None or self._jobs.value < self._order.jobs:
            return True
        ahead: int = self._counted[i] + self._running[i]
        return ahead < self._order.runs and self._started[i] < self._order.runs + SPARE


def be_a_pool(order: Order, plan: Plan, ledger: str, word: str, say: Callable[[dict[str, Any]], None]) -> None:
    """One campaign: a pool from its start to its last check."""
    nursery = forked(lambda environment: inside.attach(environment["CHAOS_STRINGS"]))  # before any thread
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    with ExitStack() as stack:
        folder = order.keep / word if order.keep else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        site = Site(folder, ledger, order.divisor, nursery)
        stack.callback(site.close)
        checks.watch(site.db)
        if site.postgres:
            with site.db.write() as c:
                for statement in FULL_DISK:
                    c.exec_driver_sql(statement)
        site.start()
        client = Client(site.pool, folder, word, site.look)
        client.start()
        nemesis = Nemesis(site, client)
        struck: dict[int, int] = {}
        for _ in range(CAMPAIGN):
            taken = plan.take(ledger)
            if taken is None:
                break
            number, run = taken
            report = nemesis.strike(TABLE[number], order.seed + run)
            struck[client.strike] = number
            jobs = sum(len(s.texts) for s in client.history.promised if s.strike == client.strike)
            plan.came_back(ledger, number, report.counted, jobs)
            say({"report": asdict(report)})
            if report.wrong and order.fails_fast:
                plan.end()
                nemesis.close()
                client.stop()  # or it would still write where everything is being removed
                return
            if nemesis.is_broken:  # another pool goes on
                break
        nemesis.close()
        client.stop()
        say({"end": _ending(site, client, struck)})


def _ending(site: Site, client: Client, struck: dict[int, int]) -> dict[str, Any]:
    """Wait until everything has ended, then check all of it."""
    until = time.monotonic() + 60 / site.divisor + END_S
    while client.open_in_all() and time.monotonic() < until:
        time.sleep(0.1)
    jobs: Counter[int] = Counter()
    for submission in client.history.promised:
        jobs[struck.get(submission.strike, 0)] += len(submission.texts)
    wrong = [(struck.get(w.strike or -1, 0), asdict(w)) for w in checks.whole(client)]
    return {"jobs": dict(jobs), "wrong": wrong}


# --- many of them ----------------------------------------------------------------------------------------


class Pools:
    """The processes that are pools."""

    def __init__(self, order: Order, plan: Plan, tally: Tally) -> None:
        self._order, self._plan, self._tally = order, plan, tally
        self._selector = selectors.DefaultSelector()
        self._number = 0
        self._pids: dict[int, str] = {}

    def run(self) -> None:
        """Until nothing is left to do, or Ctrl-C: then the table tells what there is."""
        try:
            while self._fill() or self._pids:
                for key, _ in self._selector.select(timeout=1):
                    self._hear(key.fileobj, key.data)
        except KeyboardInterrupt:
            self._tally.hear("-", {"broke": "it was stopped", "where": ""})
        finally:
            for pid in self._pids:
                os.kill(pid, signal.SIGTERM)  # they end their servers
            for pid in self._pids:
                os.waitpid(pid, 0)

    def _fill(self) -> bool:
        """Start pools while strikes are left for them; the ledger with fewer pools first."""
        while len(self._pids) < self._order.pools:
            running = Counter(self._pids.values())
            wanting = [name for name in self._order.ledgers if self._plan.left(name) > running[name]]
            if not wanting:
                return False
            self._start(min(wanting, key=lambda name: running[name]))
        return True

    def _start(self, ledger: str) -> None:
        self._number += 1
        word = f"{ledger}-{self._number}"
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            self._selector.close()
            self._be(ledger, word, writer)
        os.close(writer)
        self._pids[pid] = ledger
        self._selector.register(os.fdopen(reader), selectors.EVENT_READ, (pid, ledger))

    def _be(self, ledger: str, word: str, writer: int) -> None:
        """The child: a pool, and no return."""
        with os.fdopen(writer, "w") as pipe:

            def say(what: dict[str, Any]) -> None:
                pipe.write(json.dumps(what) + "\n")
                pipe.flush()

            try:
                be_a_pool(self._order, self._plan, ledger, word, say)
            except Exception as error:
                say({"broke": f"{type(error).__name__}: {error}", "where": traceback.format_exc()})
            finally:  # whatever it was: the parent's frames are not the child's
                pipe.flush()
                os._exit(0)

    def _hear(self, pipe: Any, whose: tuple[int, str]) -> None:
        line = pipe.readline()
        if line:
            self._tally.hear(whose[1], json.loads(line))
            return
        self._selector.unregister(pipe)
        pipe.close()
        pid, ledger = whose
        del self._pids[pid]
        if os.waitpid(pid, 0)[1]:
            self._tally.hear(ledger, {"broke": "a pool's process died", "where": ""})
            self._plan.lost()


def _again(order: Order, tally: Tally, n: int) -> None:
    """Strike what missed a time once more, without other pools beside it."""
    for ledger in order.ledgers:
        late = () if tally.broke else tally.late(ledger)
        if late:
            runs = tally.strike_again(ledger, late)
            seed = order.seed + AGAIN_SEED * n
            alone = replace(order, faults=late, ledgers=(ledger,), pools=1, seed=seed, runs=runs, jobs=0, minutes=None)
            Pools(alone, Plan(alone), tally).run()


def _faults(context: click.Context, option: click.Parameter, text: str | None) -> tuple[int, ...]:
    if text is None:
        return tuple(TABLE)
    numbers = tuple(int(word) for word in text.split(","))
    if unknown := [n for n in numbers if n not in TABLE]:
        raise click.BadParameter(f"no fault is {unknown}; there are {', '.join(map(str, TABLE))}")
    return numbers


@click.command()
@click.option("--minutes", type=float, help="Strike for so long.")
@click.option("--runs", type=int, help="Counted runs of each fault; without --minutes 1.")
@click.option("--faults", callback=_faults, metavar="N,N", help="Only these rows of FAULTS.md.")
@click.option("--ledger", type=click.Choice(["sqlite", "postgres", "both"]), default="sqlite", show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="A run's own seed is this and its number.")
@click.option("--divisor", type=float, default=10, show_default=True, help="Divides all recovery times.")
@click.option("--jobs-at-least", type=int, default=0, help="Go on until so many jobs were promised.")
@click.option("--pools", type=int, default=2, show_default=True, help="Pools side by side.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the table here, too.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first red strike.")
@click.option("--again", type=int, default=0, help="Strike rows that missed a time so often again, one pool alone.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep ledgers, histories and logs here.")
def main(
    minutes: float | None,
    runs: int | None,
    faults: tuple[int, ...],
    ledger: str,
    seed: int,
    divisor: float,
    jobs_at_least: int,
    pools: int,
    out: Path | None,
    keep: Path | None,
    fail_fast: bool,
    again: int,
) -> None:
    """Break a real pool on purpose, and check the promises. Exit 1 when one was broken."""
    ledgers = ("sqlite", "postgres") if ledger == "both" else (ledger,)
    runs = runs if runs is not None or minutes is not None else 1
    order = Order(faults, ledgers, seed, divisor, runs, minutes, pools, jobs_at_least, keep, fail_fast, again)
    command = shlex.join(["python", "-m", "tests.chaos", *sys.argv[1:]])
    prepare()
    tally = Tally(faults, ledgers, runs or 1, divisor)
    Pools(order, Plan(order), tally).run()
    for n in range(order.again):
        _again(order, tally, n + 1)
    text = table(tally, seed, command)
    click.echo(text)
    if out is not None:
        out.write_text(text + "\n")
    sys.exit(1 if tally.is_red else 0)


__all__: Sequence[str] = ("main",)
