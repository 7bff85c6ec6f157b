"""`--deadline` as people write it: 90, 30m, 2h, 1d, 18:30, 2031-05-01, 2031-05-01T18:30+02:00."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from typing import Any

import click

from api.commands.output import MOST_SECONDS
from api.use_cases.submitting import When

#: seconds
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_SPAN = re.compile(r"(\d{1,10}(?:\.\d{1,6})?)\s*([smhd]?)", re.ASCII)


def span(text: str) -> float | None:
    """Seconds of 90, 30m, 2h, 1d; None of anything else."""
    found = _SPAN.fullmatch(text.strip())
    return float(found[1]) * UNITS[found[2]] if found else None


def understood(text: str, now: datetime) -> When | None:
    """Seconds for a span, else the moment that the text says; None where it says no time.

    A time of day is the next such one after `now`; what names no zone is local, by the offset of its own date.
    """
    text = text.strip()
    if (seconds := span(text)) is not None:
        return seconds
    try:
        return _next(time.fromisoformat(text), now)
    except ValueError:
        pass
    try:
        return _zoned(datetime.fromisoformat(text))
    except (ValueError, OverflowError):  # also years that no clock of a system reaches
        return None


def _next(clock: time, now: datetime) -> datetime:
    today = now.astimezone(clock.tzinfo).date()
    at = _zoned(datetime.combine(today, clock))
    return at if at > now else _zoned(datetime.combine(today + timedelta(days=1), clock))


def _zoned(at: datetime) -> datetime:
    return at if at.tzinfo else at.astimezone()


class Deadline(click.ParamType[When]):
    """Seconds from the submit, or a moment."""

    name = "deadline"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> When:
        if isinstance(value, float | datetime):
            return value
        now = datetime.now(UTC)
        found = understood(str(value), now)
        if found is None:
            self.fail("is no time: 90 (seconds), 30m, 2h, 1d, 18:30, or 2031-05-01T18:30", param, ctx)
        left_s = found if isinstance(found, float) else (found - now).total_seconds()
        if left_s < 0:
            self.fail("is past", param, ctx)
        if left_s > MOST_SECONDS:
            self.fail("is more than ten years away", param, ctx)
        return found
