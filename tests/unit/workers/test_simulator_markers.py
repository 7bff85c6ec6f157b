"""Markers and rates choose the faults that a request meets."""

from __future__ import annotations

import pytest

from workers.simulator.faults import Fault, FaultBook, active, check_name, markers, meet


def test_markers_are_read_in_order() -> None:
    """Name, argument and count of each marker are read, in the prompt's order."""
    text = "a [[sim:429=2*1]] b [[sim:leak=kimi]] [[sim:stall]]"
    assert markers(text) == [Fault("429", "2", 1), Fault("leak", "kimi"), Fault("stall")]


@pytest.mark.parametrize("text", ["[[sim:nothing-such]]", "[[sim:slow=soon]]", "[[sim:200]]"])
def test_bad_markers_are_errors(text: str) -> None:
    """A misspelt marker is an error, so that no test passes because its fault never happened."""
    with pytest.raises(ValueError, match=r"known|convert"):
        markers(text)


def test_counted_faults_queue_up() -> None:
    """Each counted fault acts its N times, one after the other, and then none does."""
    faults = markers("[[sim:429*1]][[sim:500*2]]")
    played = [[str(f) for f in active(faults, seen)] for seen in (1, 2, 3, 4)]
    assert played == [["429"], ["500"], ["500"], []]


def test_timing_goes_with_any_other_fault() -> None:
    """`delay` and `slow` are added to the fault that is played."""
    meeting = meet(active(markers("[[sim:delay=2]][[sim:slow=0.5]][[sim:leak]]"), 1))
    assert (meeting.name, meeting.slow_s, meeting.delay_s) == ("leak", 0.5, 2.0)


def test_a_counted_marker_spares_the_retry() -> None:
    """The same prompt is spared after N times, another prompt has its own count."""
    book = FaultBook({}, 0)
    text = "[[sim:500*1]]"
    met = [book.choose(text, key).name for key in (b"a", b"a", b"b")]
    assert met == ["500", "", "500"]


def test_rates_are_drawn_from_the_seed() -> None:
    """The same seed draws the same faults, about as often as asked."""
    draws = []
    for _ in range(2):
        book = FaultBook({"500": 0.25, "leak=kimi": 0.25}, 7)
        draws.append([str(book.choose("x", b"")) for _ in range(2000)])
    assert draws[0] == draws[1]
    assert 400 < draws[0].count("500") < 600
    assert 400 < draws[0].count("leak=kimi") < 600


def test_a_marker_goes_before_the_rates() -> None:
    """A prompt that names its fault meets that one."""
    assert FaultBook({"500": 1.0}, 0).choose("[[sim:nul]]", b"").name == "nul"


def test_check_name_takes_an_argument() -> None:
    """A rate's key may carry an argument."""
    assert check_name("429=3") == Fault("429", "3")
