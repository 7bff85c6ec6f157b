"""When a batch will be over: an honest guess from numbers alone.  Pure.

A *lane* is the classes that live workers connect: their jobs wait for one another.  What a lane does in a second is
measured over its last jobs, in seconds of their calls, so that jobs of different cost weigh what they cost:

    left = (mine + all of higher priorities + of equal batches what their turns are) / what the lane does in a second

which is how dispatch serves them; the last calls at once end with the slowest of them.  The window adapts: it holds as
many jobs as the calls at once need for an average, more where more is to be guessed, and none from before an idle time,
so that a pause or a night is not taken for slowness.  It ends now, so that a lane that stands still shows a growing
guess.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks.turns import share

#: jobs the window holds: at least, for each call at once, for each that waits, and at most
LEAST, EACH, AHEAD, MOST = 100, 8, 0.5, 2_000
#: jobs for each call at once from which on a start is left out of the window
LONG = 3
#: seconds without a call after which a lane was idle
IDLE_S = 2.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that ended. at: unix seconds; took: seconds of its calls."""

    batch_id: str
    model_class: str
    at: float
    took: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """Jobs of one batch and class that are not terminal."""

    batch_id: str
    model_class: str
    priority: int
    jobs: int


@dataclass(frozen=True)
class Lane:
    """At `now`. ended: the newest first. running_since: when the oldest call in flight began; None where none is."""

    now: float
    waiting: Sequence[Waiting]
    ended: Sequence[Ended]
    running_since: float | None
    capacity: int


@dataclass(frozen=True)
class Pace:
    """What a lane did in its window. speed: seconds of calls in a second; jobs: those that ended in it."""

    speed: float
    window_s: float
    jobs: Sequence[Ended]

    def rate(self, batch_id: str) -> float:
        """Jobs of a batch in a second."""
        return sum(job.batch_id == batch_id for job in self.jobs) / self.window_s


def most_jobs(capacity: int, waiting: Iterable[Waiting]) -> int:
    """Jobs the window of a lane holds at most."""
    return min(MOST, max(LEAST, EACH * capacity, int(AHEAD * sum(some.jobs for some in waiting))))


def pace(lane: Lane, since: float) -> Pace | None:
    """What the lane did lately, and only since then where that is enough; None where nothing ended in it."""
    jobs, full = _lately(lane, since)
    if not jobs:
        return None
    apart = 1 if full else lane.capacity if len(jobs) > LONG * lane.capacity else 0  # those only begin the window
    start = jobs[-apart].at if apart else min(job.at - job.took for job in jobs)
    works = lane.running_since is not None and lane.running_since <= jobs[0].at + IDLE_S
    window = max((lane.now if works else jobs[0].at) - start, 0.001)
    counted = jobs[: len(jobs) - apart]
    return Pace(max(sum(job.took for job in counted), 0.001) / window, window, counted)


def _lately(lane: Lane, since: float) -> tuple[list[Ended], bool]:
    """The newest jobs that are to be looked at; whether there are more like them, of which the last is one."""
    most = most_jobs(lane.capacity, lane.waiting)
    jobs: list[Ended] = []
    began = lane.now
    for job in lane.ended:
        was_idle = bool(jobs) and job.at < began - IDLE_S
        if was_idle or (job.at - job.took < since and len(jobs) > LONG * lane.capacity):
            break
        jobs.append(job)
        if len(jobs) > most:
            return jobs, True
        began = min(began, job.at - job.took)
    return jobs, False


def left_s(batch_id: str, priority: int, lane: Lane, found: Pace) -> float:
    """Seconds until the lane, at this pace, has no job of the batch left."""
    cost = _Costs(found.jobs)
    jobs: Counter[str] = Counter()
    work: defaultdict[str, float] = defaultdict(float)
    for some in lane.waiting:
        jobs[some.batch_id] += some.jobs
        work[some.batch_id] += some.jobs * cost.of(some)
    of = {some.batch_id: some.priority for some in lane.waiting}
    equals = [other for other in work if other != batch_id and of[other] == priority]
    largest = max(jobs[other] for other in (batch_id, *equals))
    turns = {other: share(jobs[other], largest) for other in (batch_id, *equals)}
    mine = work[batch_id]
    first = sum(n for other, n in work.items() if of.get(other, priority) > priority)
    beside = sum(min(work[other], mine * turns[other] / turns[batch_id]) for other in equals)
    return (mine + first + beside) / found.speed + _tail_s(found)


def _tail_s(found: Pace) -> float:
    """How much longer than the mean the slowest of the calls at once takes."""
    took = sorted(job.took for job in found.jobs)
    slowest = took[int((1 - 1 / max(1.0, found.speed)) * (len(took) - 1))]
    return max(0.0, slowest - sum(took) / len(took))


class _Costs:
    """Seconds of calls a job costs: as its batch's lately, else as its class's, else as any."""

    def __init__(self, jobs: Sequence[Ended]) -> None:
        self._own = _means(((job.batch_id, job.model_class), job.took) for job in jobs)
        self._class = _means((("", job.model_class), job.took) for job in jobs)
        self._any = _means((("", ""), job.took) for job in jobs)["", ""]

    def of(self, some: Waiting) -> float:
        own = self._own.get((some.batch_id, some.model_class))
        return own if own is not None else self._class.get(("", some.model_class), self._any)


def _means(pairs: Iterable[tuple[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for key, took in pairs:
        found[key].append(took)
    return {key: sum(values) / len(values) for key, values in found.items()}


@dataclass(frozen=True)
class Place:
    """What is served before a batch, and what takes turns with it, in the lanes that it waits in."""

    batches_ahead: int
    jobs_ahead: int
    batches_beside: int
    jobs_beside: int


def place(batch_id: str, priority: int, lanes: Iterable[Lane]) -> Place:
    """Where a batch stands."""
    others = [some for lane in lanes for some in lane.waiting if some.batch_id != batch_id]
    ahead = [some for some in others if some.priority > priority]
    beside = [some for some in others if some.priority == priority]
    return Place(
        batches_ahead=len({some.batch_id for some in ahead}),
        jobs_ahead=sum(some.jobs for some in ahead),
        batches_beside=len({some.batch_id for some in beside}),
        jobs_beside=sum(some.jobs for some in beside),
    )


def lanes_of(classes: Iterable[str], workers: Sequence[Iterable[str]]) -> list[frozenset[str]]:
    """The lanes that these classes are in. workers: the classes of each."""
    lanes: list[frozenset[str]] = []
    for name in classes:
        if any(name in lane for lane in lanes):
            continue
        lane, grown = frozenset[str](), frozenset({name})
        while grown != lane:
            lane = grown
            grown = lane.union(*(served for served in map(frozenset, workers) if served & lane))
        lanes.append(lane)
    return lanes
