"""A chart of text: columns as high as their values, whatever those are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from api.commands.chart import BLOCKS, columns


def test_the_largest_reaches_the_top() -> None:
    """Heights are in proportion, and a small value is seen beside a large one."""
    assert columns([0, 1, 50, 100], height=2) == ["         ██", "   ▁▁ ██ ██"]


@given(st.lists(st.integers(0, 10**9), max_size=24), st.integers(1, 6))
def test_a_chart_has_its_height(values: list[int], height: int) -> None:
    """Every value has its place; nothing but blocks and spaces is drawn, and no value looks like nothing."""
    lines = columns(values, height)
    assert len(lines) == height
    assert set("".join(lines)) <= set(BLOCKS)
    drawn = lines[-1].ljust(3 * len(values))
    assert [drawn[3 * i] != " " for i in range(len(values))] == [value > 0 for value in values]
