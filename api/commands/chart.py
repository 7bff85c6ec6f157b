"""Small charts of text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

#: eighths of a cell
BLOCKS = " ▁▂▃▄▅▆▇█"


def columns(values: Sequence[int], height: int = 4) -> list[str]:
    """Lines, top first, in which each value is a column two cells wide; the largest reaches the top.

    A value that is not 0 is at least an eighth high.
    """
    most = max(values, default=0)
    steps = 8 * height
    tall = [max(1, round(value * steps / most)) if value else 0 for value in values] if most else [0] * len(values)
    return [
        " ".join(BLOCKS[min(8, max(0, eighths - 8 * row))] * 2 for eighths in tall).rstrip()
        for row in reversed(range(height))
    ]
