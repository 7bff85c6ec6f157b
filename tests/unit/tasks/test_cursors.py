"""A cursor reads every row once, in whatever order they are committed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tasks.cursors import LOOK_BACK, MOST_GAPS, REMEMBERED_S, SETTLED_S, Cursor, Gap, Recent, beginning


def look(cursor: Cursor, there: set[int], now: float) -> tuple[list[int], Cursor]:
    """What a look finds of the ids that are there, and the cursor behind it."""
    wanted = [i for i in sorted(there) if i > cursor.newest or any(g.first <= i <= g.last for g in cursor.gaps)]
    return wanted, cursor.moved(wanted, now)


@given(
    st.permutations(range(1, 25)),
    st.sets(st.integers(0, 23)),
    st.sets(st.integers(1, 24)),
    st.integers(0, 24),
)
def test_every_commit_is_read_once(order: list[int], looks: set[int], undone: set[int], before: int) -> None:
    """Ids 1 to 24 are committed in any order, some never; the looks between find each once, but for those before."""
    there = {i for i in order[:before] if i not in undone}
    cursor = beginning(max(there, default=0), sorted(there), 0.0)
    found: list[int] = []
    for n, i in enumerate(order[before:]):
        if i not in undone:
            there.add(i)
        if n in looks:
            new, cursor = look(cursor, there, float(n))
            found += new
    new, cursor = look(cursor, there, 25.0)
    assert sorted(found + new) == sorted(i for i in order[before:] if i not in undone)
    assert look(cursor, there, 26.0)[0] == []


def test_a_gap_is_looked_at_until_it_is_settled() -> None:
    """What a transaction that was undone leaves is not looked for without end."""
    cursor = beginning(1, [1], 0.0).moved([4], 10.0)
    assert cursor.gaps == (Gap(2, 3, 10.0),)
    assert cursor.moved([], 10.0 + SETTLED_S - 1).gaps == cursor.gaps
    assert cursor.moved([5], 10.0 + SETTLED_S).gaps == ()


def test_the_memory_of_gaps_is_bounded() -> None:
    """A jump of the ids is one gap; of very many the newest are kept."""
    assert beginning(10**9, [10**9], 0.0).gaps == (Gap(10**9 - LOOK_BACK + 1, 10**9 - 1, 0.0),)
    every_other = list(range(2, 4 * MOST_GAPS, 2))
    cursor = beginning(0, [], 0.0).moved(every_other, 0.0)
    assert len(cursor.gaps) == MOST_GAPS
    assert cursor.gaps[-1].last == every_other[-1] - 1


def test_rows_of_a_time_are_counted_once_whatever_their_clock_does() -> None:
    """Late commits are found, a clock that is set back an hour makes nothing count twice."""
    new, seen = Recent(1000.0).moved([(1, 990.0)], 1000.0)
    assert new == [(1, 990.0)]
    assert seen.since(1010.0) == 1000.0 - SETTLED_S
    new, seen = seen.moved([(1, 990.0), (2, 980.0)], 1010.0)
    assert new == [(2, 980.0)], "an earlier time that was committed later"
    assert seen.since(1010.0 - 3600) == 1010.0 - 3600 - SETTLED_S
    new, seen = seen.moved([(1, 990.0), (2, 980.0), (3, -2600.0)], 1010.0 - 3600)
    assert new == [(3, -2600.0)]
    assert seen.moved([], 1010.0 + REMEMBERED_S)[1].ids == {}
