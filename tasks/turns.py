"""Which class a provider serves next and how many jobs are sent: pure arithmetic for dispatch.

A provider that serves several classes gets one of them at a time, so that it does not swap models for every
slice: a class keeps its turn until it is empty, until a higher priority waits elsewhere, or until both its turn
and another class's oldest job are older than `turn_s`.  Who has used its turn up is followed by the next by name, so
that all come round; who did not may have cut another's short, and nobody knows whose: the clock says who is next.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

#: a worker's window, as a multiple of its calls in flight: the next jobs are at hand when one ends
WINDOW = 2
#: windows of unclaimed jobs that may be out, those included that a worker has received and not yet taken up
MOST_UNCLAIMED = 2
#: slices a worker's calls are made of; smaller slices spread better, larger ones cost less
SLICES_PER_CAPACITY = 2
#: jobs; a slice is claimed in one transaction
MAX_SLICE = 100
#: jobs sent ahead to a class that no live worker serves
IDLE_WINDOW = 16
#: a batch is small beside one with so many times its open jobs, and has so many times that one's share
MUCH_LARGER, SMALL_SHARE = 10, 2


@dataclass(frozen=True)
class LiveWorker:
    """A live worker as dispatch sees it."""

    name: str
    classes: tuple[str, ...]
    capacity: int
    turn_class: str | None
    turn_since: float
    reach: str = "local"


@dataclass(frozen=True)
class Waiting:
    """What waits in one class: the highest priority and the time of the oldest."""

    priority: int
    since: float


def next_turn(
    worker: LiveWorker, waiting: Mapping[str, Waiting], unclaimed: Collection[str], now: float, turn_s: float
) -> str | None:
    """The class a worker is sent now; None when nothing it serves waits.

    `unclaimed` are the classes with slices that nobody has claimed: one that is empty but for those keeps its turn,
    because a worker may take another class's slice before them.
    """
    mine = {name: waiting[name] for name in worker.classes if name in waiting}
    if not mine:
        return None
    turn, highest = worker.turn_class, max(w.priority for w in mine.values())
    first = sorted(name for name, w in mine.items() if w.priority == highest)
    current = mine.get(turn or "")
    if current is None and turn in unclaimed and turn in worker.classes:
        current = Waiting(priority=highest, since=now)
    if turn is None or (current is not None and current.priority < highest):
        return min(first, key=lambda name: mine[name].since)
    if current is None:
        return first[int(now // turn_s) % len(first)]
    waited_long = [name for name in first if name != turn and now - mine[name].since >= turn_s]
    served_long = now - worker.turn_since >= turn_s
    if served_long and waited_long:
        return min(waited_long, key=lambda name: (name < turn, name))
    return turn


def slice_size(capacity: int) -> int:
    """Jobs a slice for a worker of this capacity holds."""
    return max(1, min(MAX_SLICE, -(-capacity // SLICES_PER_CAPACITY)))


def room(
    model_class: str,
    turns: Mapping[str, str | None],
    live: Sequence[LiveWorker],
    held: Mapping[str, int],
    fresh: int,
    unclaimed: int,
) -> int:
    """Jobs of a class that may be sent now, so that every worker whose turn it is has its window in hand.

    held: jobs in each worker's hand. unclaimed: jobs of the class that were sent and are in nobody's hand, `fresh` of
    them just now. What was sent longer ago waits in a worker that has enough, maybe a frozen one: its share is its
    own, and the others get theirs.
    """
    windows = {s.name: WINDOW * s.capacity for s in live if turns.get(s.name) == model_class}
    wanted = sum(max(0, size - held.get(name, 0)) for name, size in windows.items())
    return min(wanted - fresh, MOST_UNCLAIMED * sum(windows.values()) - unclaimed)


def window(model_class: str, live: Sequence[LiveWorker]) -> int:
    """Jobs of a class that may be sent and in nobody's hand, by the turns that there are."""
    serving = [s for s in live if model_class in s.classes]
    if not serving:
        return IDLE_WINDOW
    mine = [s.capacity for s in serving if s.turn_class == model_class or s.turn_class not in s.classes]
    return MOST_UNCLAIMED * WINDOW * sum(mine)


def share(open_jobs: int, largest: int) -> int:
    """What a batch gets of a class beside an equal one. largest: the open jobs of the largest of its equals.

    With a turn for each, a small batch would need twice its time alone and then what it waits for its first turn.
    """
    return SMALL_SHARE if open_jobs * MUCH_LARGER <= largest else 1


def suspect_slice(crashes: int, size: int) -> int:
    """Jobs a slice of what a dead worker held may have: half as many after each crash, then one."""
    return max(1, size >> crashes)
