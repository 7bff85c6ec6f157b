"""The guess of when a batch is over, from streams of jobs whose end is known."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence

import pytest

from tasks.eta import Ended, Lane, Pace, Waiting, lanes_of, left_s, most_jobs, pace, place

T0 = 1_000_000.0


def stream(n: int, slots: int, took: Callable[[], float], batch: str = "mine", began: float = T0) -> list[Ended]:
    """n jobs on so many slots, one after another without a gap, in the order of their ends."""
    free = [began] * slots
    ended = []
    for _ in range(n):
        start = heapq.heappop(free)
        seconds = took()
        heapq.heappush(free, start + seconds)
        ended.append(Ended(batch, "small", start + seconds, seconds))
    return sorted(ended, key=lambda job: job.at)


def at(
    now: float, ended: Sequence[Ended], *waiting: Waiting, slots: int = 8, running_since: float | None = 0.0
) -> Lane:
    """A lane at a time; 0: a call began just before."""
    since = now - 0.01 if running_since == 0.0 else running_since
    return Lane(now, waiting, [job for job in reversed(ended) if job.at <= now], since, slots)


def mine(jobs: int, priority: int = 0) -> Waiting:
    return Waiting("mine", "small", priority, jobs)


def guess(lane: Lane, since: float = T0, priority: int = 0) -> float:
    found = pace(lane, since)
    assert found is not None
    return left_s("mine", priority, lane, found)


@pytest.mark.parametrize("slots", [1, 4, 32, 128])
@pytest.mark.parametrize("spread", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_steady_batch(slots: int, spread: float, share: float) -> None:
    """At 20, 50 and 80 % of a batch whose calls take what they take the guess is within 20 % of the truth."""
    draw = random.Random(slots)
    n = 1_000 if slots < 100 else 4_000
    ended = stream(n, slots, lambda: 3.0 * draw.uniform(1 - spread, 1 + spread))
    now = ended[int(share * n)].at
    left = n - int(share * n) - 1
    assert guess(at(now, ended, mine(left), slots=slots)) == pytest.approx(ended[-1].at - now, rel=0.2)


def test_an_idle_night_is_no_slowness() -> None:
    """Jobs from before an idle time do not count; nor does the time since the last one when nothing runs."""
    before = stream(500, 8, lambda: 1.0, "old", T0 - 50_000)
    ended = stream(200, 8, lambda: 1.0)
    now = ended[-1].at
    lane = at(now, before + ended, mine(800))
    assert guess(lane) == pytest.approx(100, rel=0.1)
    assert guess(lane, T0 - 90_000) == pytest.approx(100, rel=0.1)
    later = at(now + 7_200, ended, mine(800), running_since=None)
    assert guess(later) == pytest.approx(100, rel=0.1)
    started = at(now + 7_200, ended, mine(800), running_since=now + 7_199)
    assert guess(started) == pytest.approx(100, rel=0.1)


def test_a_lane_that_stands_still_shows_it() -> None:
    """With calls in flight that do not end the guess grows."""
    ended = stream(200, 8, lambda: 1.0)
    now = ended[-1].at
    guesses = [guess(at(now + s, ended, mine(800), running_since=now)) for s in (0, 30, 300)]
    assert guesses[0] < guesses[1] / 1.5 < guesses[2] / 5


def test_what_is_ahead_and_beside_counts() -> None:
    """Higher priorities whole, equals as their turns are, lower ones not at all."""
    ended = stream(400, 8, lambda: 1.0)
    now = ended[-1].at

    def of(*others: tuple[int, int]) -> float:
        waiting = [Waiting(f"b{i}", "small", priority, n) for i, (priority, n) in enumerate(others)]
        return guess(at(now, ended, mine(80, priority=3), *waiting), priority=3)

    alone = of()
    assert alone == pytest.approx(10, rel=0.1)
    assert of((2, 10_000)) == pytest.approx(alone, rel=0.1)
    assert of((3, 400)) == pytest.approx(20, rel=0.1)
    assert of((3, 10_000)) == pytest.approx(15, rel=0.1)  # it is small beside that, and gets two turns of three
    assert of((3, 8)) == pytest.approx(11, rel=0.1)
    assert of((4, 160), (3, 400)) == pytest.approx(40, rel=0.1)


def test_a_batch_before_its_first_job_ended() -> None:
    """It goes by what the class did for others."""
    ended = stream(200, 8, lambda: 1.0, "other")
    assert guess(at(ended[-1].at, ended, mine(80)), since=ended[-1].at) == pytest.approx(10, rel=0.1)


def test_dear_jobs_weigh_what_they_cost() -> None:
    """A hundred long jobs of a higher priority are more than a hundred short ones."""
    ended = sorted(stream(100, 4, lambda: 1.0) + stream(10, 4, lambda: 10.0, "dear"), key=lambda job: job.at)
    lane = at(ended[-1].at, ended, mine(80), Waiting("dear", "small", 1, 80))
    assert guess(lane) > 4 * guess(at(ended[-1].at, ended, mine(80)))


def test_nothing_ended_yet() -> None:
    """Then there is no pace."""
    assert pace(at(T0, [], mine(3)), T0) is None


def test_the_window() -> None:
    """At least a hundred jobs, more for many calls at once or much that waits, and bounded."""
    assert most_jobs(1, []) == 100
    assert most_jobs(50, []) == 400
    assert most_jobs(1, [mine(1_000)]) == 500
    assert most_jobs(1_000, [mine(10**6)]) == 2_000
    found = pace(at(T0 + 1_000, stream(5_000, 10, lambda: 1.0)), T0)
    assert found is not None
    assert isinstance(found, Pace)
    assert len(found.jobs) == 100


def test_place() -> None:
    """Batches are counted once, whatever classes they are in."""
    lane = at(
        T0, [], mine(5), Waiting("a", "small", 1, 2), Waiting("a", "coder", 1, 3), Waiting("b", "small", 0, 4),
        Waiting("c", "small", -1, 9),
    )  # fmt: skip
    found = place("mine", 0, [lane])
    assert (found.batches_ahead, found.jobs_ahead, found.batches_beside, found.jobs_beside) == (1, 5, 1, 4)


def test_lanes() -> None:
    """Classes that workers connect, however far; one that nobody serves is its own."""
    workers = [["a", "b"], ["b", "c"], ["d"]]
    assert lanes_of(["a", "c", "d", "e"], workers) == [{"a", "b", "c"}, {"d"}, {"e"}]
