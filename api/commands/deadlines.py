"""`--deadline` as people write it: 90, 30m, 2h, 1d, 18:30, 2031-05-01, 2031-05-01T18:30+02:00."""

from __future__ import annotations

import re
from datetime import datetime, time, timedelta
from typing import Any

import click

from api.commands.output import MOST_SECONDS

#: seconds
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_SPAN = re.compile(r"(\d{1,10}(?:\.\d{1,6})?)\s*([smhd]?)", re.ASCII)


def seconds_until(text: str, now: datetime) -> float | None:
    """Seconds from `now`, which has a zone, to what the text says; None where it says no time.

    A time of day is the next such one; what names no zone is of the zone of `now`.
    """
    if span := _SPAN.fullmatch(text.strip()):
        return float(span[1]) * UNITS[span[2]]
    try:
        at = datetime.combine(now.date(), time.fromisoformat(text.strip()))
        at = at if at.tzinfo else at.replace(tzinfo=now.tzinfo)
        at = at if at > now else at + timedelta(days=1)
    except ValueError:
        try:
            at = datetime.fromisoformat(text.strip())
        except ValueError:
            return None
        at = at if at.tzinfo else at.replace(tzinfo=now.tzinfo)
    return (at - now).total_seconds()


class Deadline(click.ParamType[float]):
    """Seconds from now."""

    name = "deadline"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = seconds_until(str(value), datetime.now().astimezone())
        if found is None:
            self.fail("is no time: 90 (seconds), 30m, 2h, 1d, 18:30, or 2031-05-01T18:30", param, ctx)
        if found < 0:
            self.fail("is past", param, ctx)
        if found > MOST_SECONDS:
            self.fail("is more than ten years away", param, ctx)
        return found
