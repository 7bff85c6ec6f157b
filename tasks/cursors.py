"""Reading rows as they come, each once, where ids and times are given out before the commits that show them.  Pure.

PostgreSQL counts ids up when a row is inserted and shows the row when its transaction commits, so a lower id may come
after a higher one.  A cursor therefore keeps the ids between those it saw, its gaps, and looks for them too, until
every transaction that may hold one is over.  A gap for good is what a transaction that was undone leaves.

    ids seen    1 2 3 . . 6 7 . 9          newest 9, gaps 4-5 and 8
    then        1 2 3 4 . 6 7 . 9 10       newest 10, gaps 5 and 8
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

#: seconds after which every transaction that took an id, or told the time, is over, one way or the other
SETTLED_S = 600.0
#: ids below the newest one that a new cursor looks at for gaps: more than all transactions together hold
LOOK_BACK = 10_000
#: gaps that are kept, the newest ones
MOST_GAPS = 1_000
#: seconds that rows are remembered which were read by their time: its clock may be set back by an hour
REMEMBERED_S = 2 * 3600.0


@dataclass(frozen=True, slots=True)
class Gap:
    """Ids that were not there. noticed_at: seconds of the reader's own clock, which only grows."""

    first: int
    last: int
    noticed_at: float


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far the rows of a table were read."""

    newest: int
    gaps: tuple[Gap, ...] = ()

    def moved(self, ids: Sequence[int], now: float) -> Cursor:
        """Behind these ids too, which are in order and were not read before."""
        late = [i for i in ids if i <= self.newest]
        new = [self.newest, *(i for i in ids if i > self.newest)]
        kept = [part for gap in self.gaps if now - gap.noticed_at < SETTLED_S for part in _without(gap, late)]
        return Cursor(new[-1], (*kept, *_between(new, now))[-MOST_GAPS:])


def beginning(newest: int, there: Iterable[int], now: float) -> Cursor:
    """A cursor behind everything that is there. there: the ids of the last LOOK_BACK up to the newest, in order."""
    return Cursor(newest, tuple(_between([max(0, newest - LOOK_BACK), *there], now)))


def _between(ids: Sequence[int], now: float) -> Iterator[Gap]:
    return (Gap(low + 1, high - 1, now) for low, high in pairwise(ids) if high - low > 1)


def _without(gap: Gap, ids: Sequence[int]) -> Iterator[Gap]:
    """What is left of a gap beside these ids."""
    inside = [i for i in ids if gap.first <= i <= gap.last]
    return _between([gap.first - 1, *inside, gap.last + 1], gap.noticed_at)


@dataclass(frozen=True, slots=True)
class Recent:
    """Rows read by a time that is theirs: those of the last SETTLED_S are looked at again, and counted once.

    at: of the last look, by the clock that their times are of; it may be set, so the earlier of two looks counts.
    """

    at: float
    ids: Mapping[int, float] = field(default_factory=dict)

    def since(self, now: float) -> float:
        """The time from which on rows are to be looked at."""
        return min(self.at, now) - SETTLED_S

    def moved(self, rows: Sequence[Any], now: float) -> tuple[list[Any], Recent]:
        """Those of the rows (id, …, time) that are new, and where the next look goes on."""
        new = [row for row in rows if row[0] not in self.ids]
        known = {**self.ids, **{row[0]: row[-1] for row in rows}}
        return new, Recent(now, {i: at for i, at in known.items() if at >= now - REMEMBERED_S})
