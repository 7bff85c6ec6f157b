"""The diagram of the states and the table of moves say the same."""

from __future__ import annotations

from tasks.states import ANSWERED, LIVE, MOVES, TERMINAL, JobState


def test_every_state_is_live_or_terminal() -> None:
    """A state has work before it or never changes, and never both."""
    assert set(JobState) == LIVE | TERMINAL
    assert not LIVE & TERMINAL
    assert ANSWERED <= TERMINAL


def test_only_live_states_are_left() -> None:
    """Every live state can be left, a terminal one cannot."""
    assert set(MOVES) == LIVE


def test_every_state_is_reached() -> None:
    """Each state but the first is reached from the first by some chain of moves."""
    reached, edge = {JobState.QUEUED}, {JobState.QUEUED}
    while edge:
        edge = {after for state in edge for after in MOVES.get(state, frozenset())} - reached
        reached |= edge
    assert reached == set(JobState)


def test_any_live_job_can_be_cancelled_and_can_expire() -> None:
    """A batch can end whatever its jobs are doing."""
    for state in LIVE:
        assert {JobState.CANCELLED, JobState.EXPIRED} <= MOVES[state]


def test_only_a_running_job_gets_an_answer() -> None:
    """Nothing is done that nobody claimed."""
    assert {state for state, after in MOVES.items() if after & ANSWERED} == {JobState.RUNNING}
