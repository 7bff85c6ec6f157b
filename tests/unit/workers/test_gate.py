"""How many calls may run, told the time by the test."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.backends import Health
from workers.gate import BUSY_FIRST_S, BUSY_MOST_S, PATIENCE_S, PAUSE_MOST_S, PROBE_FIRST_S, PROBE_MOST_S, Gate


def test_a_healthy_provider_takes_its_capacity() -> None:
    """What runs counts, and there is never less than nothing free."""
    gate = Gate(8)
    assert [gate.free(running, 0) for running in (0, 5, 8, 11)] == [8, 3, 0, 0]
    assert gate.takes(0)


def test_a_busy_reply_halves_the_limit_once_a_moment() -> None:
    """All the calls of one moment that are refused are one sign, not many."""
    gate = Gate(8)
    for _ in range(8):
        gate.busy(10.0, None, "busy")
    assert gate.limit == 4
    gate.busy(12.0, None, "busy")
    assert gate.limit == 2
    for n in range(5):
        gate.busy(20.0 + 2 * n, None, "busy")
    assert gate.limit == 1


def test_pauses_double_up_to_the_longest() -> None:
    """A server that stays busy is asked less and less, but always again."""
    gate = Gate(4)
    pauses = [gate.busy(100.0 * n, None, "busy") for n in range(12)]
    assert pauses[:3] == [BUSY_FIRST_S, 2 * BUSY_FIRST_S, 4 * BUSY_FIRST_S]
    assert pauses[-1] == BUSY_MOST_S


@pytest.mark.parametrize("asked", [0.0, 2.0, 300.0])
def test_a_server_that_names_a_time_is_believed(asked: float) -> None:
    """Retry-After is the pause; one reply stops the whole provider for a minute at most."""
    gate = Gate(4)
    assert gate.busy(50.0, asked, "busy") == asked
    assert gate.free(0, 50.0 + asked) == 2
    assert asked == 0 or gate.free(0, 50.0 + min(asked, PAUSE_MOST_S) - 0.01) == 0


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    """The last to be told to wait does not speak for the others."""
    gate = Gate(4)
    gate.busy(0.0, 20.0, "busy")
    gate.busy(1.0, 1.0, "busy")
    assert (gate.free(0, 19.9), gate.free(0, 20.0)) == (0, 2)


def test_the_limit_grows_one_call_a_round() -> None:
    """As many successes as calls at once add one call, up to the capacity."""
    gate = Gate(8)
    gate.busy(0.0, 0.0, "busy")
    assert gate.limit == 4
    rounds = 0
    while gate.limit < 8:
        for _ in range(gate.limit + 1):
            gate.succeeded(1e6)
        rounds += 1
    assert rounds == 4
    for _ in range(100):
        gate.succeeded(1e6)
    assert gate.limit == 8


def test_a_success_ends_the_trouble() -> None:
    """The next busy reply starts with the shortest pause again."""
    gate = Gate(4)
    for n in range(5):
        gate.busy(10.0 * n, None, "busy")
    gate.succeeded(1e6)
    assert (gate.health, gate.detail) == (Health.HEALTHY, "")
    assert gate.busy(100.0, None, "busy") == BUSY_FIRST_S


def test_a_short_pause_is_waited_for_and_a_long_one_is_not() -> None:
    """Beyond its patience a worker lets others have the jobs."""
    gate = Gate(4)
    gate.busy(0.0, PATIENCE_S, "busy")
    assert gate.takes(0.0)
    gate.busy(0.0, PATIENCE_S + 1, "busy")
    assert not gate.takes(0.0)
    assert gate.takes(1.0)


@pytest.mark.parametrize(("loading", "health"), [(True, Health.WARMING), (False, Health.BUSY)])
def test_loading_is_told_from_busy(loading: bool, health: Health) -> None:
    """Both wait; a person sees which it is."""
    gate = Gate(4)
    gate.busy(0.0, None, "told", loading=loading)
    assert (gate.health, gate.detail, gate.away) == (health, "told", False)


@pytest.mark.parametrize("health", [Health.OFFLINE, Health.MISCONFIGURED])
def test_a_lost_provider_takes_nothing_until_it_is_found(health: Health) -> None:
    """Time alone and late answers do not bring it back; a probe does, at once."""
    gate = Gate(4)
    gate.busy(0.0, 1000.0, "busy")
    gate.lost(health, "gone")
    gate.succeeded(1e6)
    assert (gate.health, gate.detail, gate.away) == (health, "gone", True)
    assert gate.free(0, 1e9) == 0
    assert not gate.takes(1e9)
    gate.found()
    assert gate.takes(1.0)
    assert gate.free(0, 1.0) > 0


def test_probes_come_ever_less_often() -> None:
    """The waits double up to the longest, and start anew with the next trouble, not with every failed probe."""
    gate = Gate(4)
    gate.lost(Health.OFFLINE, "gone")
    waits = []
    for _ in range(10):
        gate.lost(Health.OFFLINE, "gone")
        waits.append(gate.probe_wait())
    assert waits[:3] == [PROBE_FIRST_S, 2 * PROBE_FIRST_S, 4 * PROBE_FIRST_S]
    assert waits[-1] == PROBE_MOST_S
    gate.found()
    gate.lost(Health.OFFLINE, "gone")
    assert gate.probe_wait() == PROBE_FIRST_S


def test_a_busy_reply_that_comes_late_does_not_bring_a_lost_provider_back() -> None:
    """Nothing is sent before the probe, whatever calls that were in flight still say."""
    gate = Gate(4)
    gate.lost(Health.MISCONFIGURED, "401")
    gate.busy(0.0, 0.0, "busy")
    assert gate.free(0, 10.0) == 0


happening = st.sampled_from(["busy", "loading", "success", "lost", "found", "probe"])


@given(st.integers(1, 300), st.lists(st.tuples(happening, st.floats(0, 100)), max_size=60))
def test_whatever_happens_the_limit_stays_in_its_bounds(capacity: int, story: list[tuple[str, float]]) -> None:
    """At least one call may run, never more than the capacity, and every pause ends."""
    gate, now = Gate(capacity), 0.0
    for what, seconds in story:
        now += seconds
        match what:
            case "busy" | "loading":
                gate.busy(now, None, "", loading=what == "loading")
            case "success":
                gate.succeeded(now)
            case "lost":
                gate.lost(Health.OFFLINE, "")
            case "found":
                gate.found()
            case "probe":
                assert 0 < gate.probe_wait() <= PROBE_MOST_S
        assert 1 <= gate.limit <= capacity
        assert gate.away or gate.free(0, now + BUSY_MOST_S + 0.001) >= 1
        assert gate.free(0, now + BUSY_MOST_S) == (0 if gate.away else gate.limit)
