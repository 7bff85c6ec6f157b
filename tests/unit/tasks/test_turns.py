"""Which class a provider serves next, how large slices are, and how many jobs are ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.turns import MAX_SLICE, WINDOW, LiveWorker, Waiting, next_turn, room, share, slice_size, suspect_slice

NOW = 1000.0
TURN = 60.0
#: seconds between two looks
LOOK = 5.0


def server(turn: str | None = None, since: float = 0.0, classes: tuple[str, ...] = ("a", "b")) -> LiveWorker:
    return LiveWorker("n/p", classes, 4, turn, since)


@pytest.mark.parametrize(
    ("turn", "since", "waiting", "next_"),
    [
        pytest.param("a", 0, {}, None, id="nothing waits"),
        pytest.param(None, 0, {"c": Waiting(0, 1)}, None, id="nothing it serves waits"),
        pytest.param(None, 0, {"a": Waiting(0, 5), "b": Waiting(0, 4)}, "b", id="first turn: the oldest"),
        pytest.param(None, 0, {"a": Waiting(0, 5), "b": Waiting(0, 5)}, "a", id="equal: by name"),
        pytest.param(None, 0, {"a": Waiting(1, 5), "b": Waiting(0, 4)}, "a", id="first turn: the priority"),
        pytest.param("a", 900, {"b": Waiting(0, 999)}, "b", id="the turn ends when its class is empty"),
        pytest.param("a", 941, {"a": Waiting(0, 0), "b": Waiting(0, 0)}, "a", id="59 s of turn are kept"),
        pytest.param("a", 940, {"a": Waiting(0, 0), "b": Waiting(0, 0)}, "b", id="60 s are over"),
        pytest.param("a", 0, {"a": Waiting(0, 0), "b": Waiting(0, 941)}, "a", id="nobody has waited 60 s"),
        pytest.param("a", 999, {"a": Waiting(0, 0), "b": Waiting(1, 999)}, "b", id="a higher priority at once"),
        pytest.param("a", 900, {"a": Waiting(1, 0), "b": Waiting(0, 999)}, "a", id="a lower one waits"),
        pytest.param("gone", 0, {"a": Waiting(0, 1)}, "a", id="its class is no longer configured"),
    ],
)
def test_next_turn(turn: str | None, since: float, waiting: dict[str, Waiting], next_: str | None) -> None:
    """A class keeps its turn until it is empty, outranked, or both it and another are over 60 s."""
    assert next_turn(server(turn, since), waiting, (), NOW, TURN) == next_


@pytest.mark.parametrize(
    ("unclaimed", "waiting", "next_"),
    [
        pytest.param(["a"], {"b": Waiting(0, 999)}, "a", id="its last slices are still on their way"),
        pytest.param(["a"], {"b": Waiting(0, 900)}, "b", id="another has waited 60 s"),
        pytest.param(["c"], {"b": Waiting(0, 999)}, "b", id="another's slices do not count"),
        pytest.param(["a"], {}, None, id="nothing else waits"),
    ],
)
def test_a_class_keeps_its_turn_until_its_slices_are_claimed(
    unclaimed: list[str], waiting: dict[str, Waiting], next_: str | None
) -> None:
    """Another class's slice must not be taken before the last ones of this."""
    assert next_turn(server("a", 0), waiting, unclaimed, NOW, TURN) == next_


@given(
    st.lists(st.sampled_from("abc"), min_size=1, unique=True),
    st.dictionaries(st.sampled_from("abcd"), st.builds(Waiting, st.integers(0, 2), st.floats(0, NOW))),
    st.lists(st.sampled_from("abc"), unique=True),
    st.sampled_from(["a", "b", "c", None]),
    st.floats(0, NOW),
)
def test_a_turn_is_a_class_that_waits(
    classes: list[str], waiting: dict[str, Waiting], unclaimed: list[str], turn: str | None, since: float
) -> None:
    """A provider is idle exactly when nothing it serves waits, and is never sent another's work."""
    chosen = next_turn(server(turn, since, tuple(classes)), waiting, unclaimed, NOW, TURN)
    assert (chosen is None) == (not set(classes) & set(waiting))
    assert chosen is None or (chosen in classes and chosen in {*waiting, *unclaimed})


def served(waits: Callable[[float], dict[str, Waiting]], start: float, looks: int) -> list[str | None]:
    """What a provider of classes a to f is sent in so many looks of LOOK seconds."""
    found = []
    worker = server(classes=tuple("abcdef"))
    for now in (start + LOOK * n for n in range(looks)):
        turn = next_turn(worker, waits(now), (), now, TURN)
        if turn is not None and turn != worker.turn_class:
            worker = replace(worker, turn_class=turn, turn_since=now)
        found.append(turn)
    return found


@given(st.dictionaries(st.sampled_from("abcdef"), st.builds(Waiting, st.just(0), st.floats(0, NOW)), min_size=2))
def test_every_class_gets_its_turn(waiting: dict[str, Waiting]) -> None:
    """Of k that always have work each is served in every k turns, whichever began to wait first."""
    k = len(waiting)
    turns = [name for name, _ in groupby(served(lambda _: waiting, NOW + TURN, 3 * k * int(TURN / LOOK)))]
    assert len(turns) == 3 * k
    assert all(set(turns[n : n + k]) == set(waiting) for n in range(2 * k + 1))


@given(
    st.sets(st.sampled_from("abcdef"), min_size=1),
    st.sampled_from("abcdef"),
    st.integers(2, 30),
    st.integers(0, 1),
    st.integers(0, 1000),
)
def test_who_comes_and_goes_keeps_nobody_waiting(
    always: set[str], other: str, every: int, priority: int, start: int
) -> None:
    """Beside one that has a job now and then, which may be urgent, each of k is served in every 2k turns' time."""
    waiting = {name: Waiting(0, n) for n, name in enumerate(sorted(always - {other}))}
    most = 2 * (len(waiting) + 1) * TURN

    def waits(now: float) -> dict[str, Waiting]:
        comes = round(now / LOOK) % every == 0
        return waiting | ({other: Waiting(priority, 1)} if comes else {})

    given_ = served(waits, NOW + LOOK * start, 3 * int(most / LOOK))
    for name in waiting:
        without = [len(list(some)) for mine, some in groupby(given_, lambda turn: turn == name) if not mine]  # noqa: B023
        assert LOOK * max(without, default=0) <= most, name


@given(st.integers(1, 5000))
def test_slices_fit_their_worker(capacity: int) -> None:
    """A slice holds at least one job, never more than one transaction takes, never more than the worker runs."""
    assert 1 <= slice_size(capacity) <= min(MAX_SLICE, capacity)


LIVE = [
    LiveWorker("x", ("a", "b"), 4, None, 0),
    LiveWorker("y", ("a",), 16, None, 0),
    LiveWorker("z", ("b",), 2, None, 0),
]
TURNS = {"x": "b", "y": "a", "z": None}


def test_a_window_is_made_of_the_workers_whose_turn_it_is() -> None:
    """Only workers that now serve a class make room for it."""
    assert room("a", TURNS, LIVE, {}, 0, 0) == WINDOW * 16
    assert room("b", TURNS, LIVE, {}, 0, 0) == WINDOW * 4
    assert room("c", TURNS, LIVE, {}, 0, 0) == 0


def test_one_worker_holds_no_room_of_anothers() -> None:
    """One that took more than its window, and froze, leaves the others theirs; what is on its way counts once."""
    live = [LiveWorker("x", ("a",), 4, None, 0), LiveWorker("y", ("a",), 4, None, 0)]
    turns = {"x": "a", "y": "a"}
    assert room("a", turns, live, {"x": 12}, 0, 0) == WINDOW * 4
    assert room("a", turns, live, {"x": 12, "y": 2}, 4, 4) == 2
    assert room("a", turns, live, {"x": 12}, 0, 30) == 2, "never more on its way than two windows"


def test_what_others_still_run_takes_no_room() -> None:
    """A large worker that is drained, or whose turn is another class's by now, leaves a small one its window."""
    live = [LiveWorker("small", ("a",), 4, None, 0), LiveWorker("large", ("a", "b"), 64, None, 0)]
    held = {"drained": 64, "large": 64}
    assert room("a", {"small": "a", "large": "b"}, live, held, 0, 0) == WINDOW * 4


def test_a_share() -> None:
    """Twice as much for a batch beside one ten times as large, and never less than one."""
    assert [share(n, 100) for n in (1, 10, 11, 100)] == [2, 2, 1, 1]
    assert share(0, 0) >= 1


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_suspects_run_in_halves_then_alone(size: int) -> None:
    """Each crash halves the company of a suspect, until it is alone."""
    sizes = [suspect_slice(crashes, size) for crashes in range(1, 12)]
    assert all(after <= max(1, before / 2) for before, after in pairwise(sizes))
    assert sizes[0] <= max(1, size / 2)
    assert sizes[-1] == 1
