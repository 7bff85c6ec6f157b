"""How often the audit's test raises a false alarm, and how soon it finds a drop, in audits and in jobs.

    python -m tests.bench.audit [--streams 1000]

A drop follows a time of agreement 0.95; where the test is in an alarm then, that time goes on until it is armed.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence

import click

from tasks.sampling import BAD, GOOD, CusumState, advance, draw, probability

#: of the jobs, while nothing looks wrong
RATE = 0.01
#: in control before anything is counted: audits, and jobs where those are counted
SETTLE_AUDITS, SETTLE_JOBS = 500, 30_000
#: audits in control of every stream, in which false alarms are counted
IN_CONTROL = 10_000
#: agreement after a drop, and the audits within which shares of the streams are printed
DROPS = ((BAD, (55, 120)), (0.75, (45,)))

Rate = Callable[[float, float], float]


@click.command()
@click.option("--streams", default=1000, show_default=True)
def main(streams: int) -> None:
    """Print the figures."""
    false = [_false_alarms(random.Random(i)) for i in range(streams)]
    each, error = statistics.mean(false), statistics.stdev(false) / math.sqrt(streams)
    scale = 4000 / IN_CONTROL
    click.echo(f"at {GOOD}: {each * scale:.2f} ± {error * scale:.2f} false alarms per 4,000 audits")
    for agreement, within in DROPS:
        audits = [_audits(random.Random(i), agreement) for i in range(streams)]
        shares = ", ".join(f"{sum(a <= n for a in audits) / streams:.1%} within {n}" for n in within)
        click.echo(f"drop to {agreement}: audits to the alarm: {_spread(audits)}; {shares}")
    for agreement, _ in DROPS:
        fixed = [_jobs(random.Random(i), i, agreement, _fixed) for i in range(streams)]
        adaptive = [_jobs(random.Random(i), i, agreement, probability) for i in range(streams)]
        ratio = statistics.median(adaptive) / statistics.median(fixed)
        click.echo(f"drop to {agreement}: jobs to the alarm: adaptive {_spread(adaptive)}; fixed {_spread(fixed)}")
        click.echo(f"  ratio of the medians {ratio:.2f}, of the means {sum(adaptive) / sum(fixed):.2f}")
    audits = [_settled_in_jobs(random.Random(i), probability).n for i in range(streams)]
    click.echo(f"at {GOOD}: one job in {SETTLE_JOBS / statistics.mean(audits):.0f} is audited")


def _spread(lengths: Sequence[int]) -> str:
    ordered = sorted(lengths)
    return f"median {statistics.median(ordered):,.0f}, 90 % {ordered[math.ceil(0.9 * len(ordered)) - 1]:,}"


def _false_alarms(random_: random.Random) -> int:
    state = _settled(random_)
    before = state.alarms
    for _ in range(IN_CONTROL):
        state = advance(state, random_.random() < GOOD)
    return state.alarms - before


def _settled(random_: random.Random) -> CusumState:
    state = CusumState()
    while state.n < SETTLE_AUDITS or not state.armed:
        state = advance(state, random_.random() < GOOD)
    return state


def _audits(random_: random.Random, agreement: float) -> int:
    state = _settled(random_)
    settled = state
    while state.alarms == settled.alarms:
        state = advance(state, random_.random() < agreement)
    return state.n - settled.n


def _fixed(rate: float, statistic: float) -> float:
    return rate


def _jobs(random_: random.Random, stream: int, agreement: float, rate: Rate) -> int:
    """Jobs from the drop to the alarm."""
    state = _settled_in_jobs(random_, rate)
    before, jobs = state.alarms, 0
    while state.alarms == before:
        if draw(b"bench", str(stream), str(jobs)) < rate(RATE, state.statistic):
            state = advance(state, random_.random() < agreement)
        jobs += 1
    return jobs


def _settled_in_jobs(random_: random.Random, rate: Rate) -> CusumState:
    """The test at a drop; gaps between audits are drawn at once, as a draw for every job would take minutes."""
    state, jobs = CusumState(), 0
    while True:
        gap = math.log(1 - random_.random()) / math.log(1 - rate(RATE, state.statistic))
        jobs += int(gap) + 1
        if jobs > SETTLE_JOBS and state.armed:
            return state
        state = advance(state, random_.random() < GOOD)


if __name__ == "__main__":
    main()
