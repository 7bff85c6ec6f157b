"""Deadlines as people write them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from api.commands.deadlines import seconds_until

NOW = datetime(2031, 5, 1, 17, 0, tzinfo=UTC)
HOUR = 3600.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        ("0", 0),
        ("45s", 45),
        ("30m", 0.5 * HOUR),
        ("2h", 2 * HOUR),
        (" 2 h ", 2 * HOUR),
        ("1d", 24 * HOUR),
        ("18:30", 1.5 * HOUR),
        ("16:00", 23 * HOUR),
        ("2031-05-01T18:00", HOUR),
        ("2031-05-01T18:00+02:00", -HOUR),
        ("2031-05-02", 7 * HOUR),
        ("2031-05-01T18:00:00Z", HOUR),
    ],
)
def test_what_is_understood(text: str, seconds: float) -> None:
    """Spans, times of day (the next such one), dates and times, in the zone of now unless they name one."""
    assert seconds_until(text, NOW) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5", "nan", "inf", "1e3", "2w", "25:00", "2031-13-01", "٣"])
def test_what_is_not(text: str) -> None:
    """Anything else is no time."""
    assert seconds_until(text, NOW) is None
