"""What a call takes of its provider's limits, and when there is more.  Pure; told the time.

A limit has windows: a minute by the clock, or a day in its zone.  A call is reserved in the windows of the moment at
an estimate, and corrected to what it took when it is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from tasks.providers import Limit, Provider

#: characters a token is taken to have before a call; afterwards the server's count is trusted
CHARS_PER_TOKEN = 3.5
#: tokens an answer is taken to have where nobody limits it
EXPECTED_OUT = 1_000


@dataclass(frozen=True, slots=True)
class Window:
    """The present one of a limit. began, ends: unix seconds."""

    limit: Limit
    began: float
    ends: float


def costs(provider: Provider, model: str, tokens_in: int, tokens_out: int) -> dict[str, float]:
    """unit -> what a call of so many tokens takes of it."""
    found = {"requests": 1.0, "tokens": float(tokens_in + tokens_out)}
    for unit, price in provider.prices.get(model, {}).items():
        found[unit] = price.request + (price.input * tokens_in + price.output * tokens_out) / 1e6
    return found


def windows(provider: Provider, now: float) -> list[Window]:
    """The present window of each of a provider's limits."""
    return [Window(limit, *_bounds(limit, now)) for limit in provider.limits]


def _bounds(limit: Limit, now: float) -> tuple[float, float]:
    if limit.per == "minute":
        began = now - now % 60
        return began, began + 60
    zone = ZoneInfo(limit.zone)
    midnight = datetime.fromtimestamp(now, zone).replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight.timestamp(), (midnight + timedelta(days=1)).timestamp()


def hindrance(window: Window, taken: float, more: float) -> str | None:
    """Why a call that takes `more` may not go now, in words; None when it may."""
    limit = window.limit
    if taken + more <= limit.most:
        return None
    zone = ZoneInfo(limit.zone)
    again = datetime.fromtimestamp(window.ends, zone)
    when = f"{again:{'%H:%M:%S' if limit.per == 'minute' else '%Y-%m-%d %H:%M'}} {limit.zone}"
    return f"at its limit of {limit.most:g} {limit.unit} a {limit.per} ({taken:g} taken); there is more at {when}"


def too_large(window: Window, costs: Mapping[str, float]) -> bool:
    """Whether one call takes more than the whole window: it could never go."""
    return costs.get(window.limit.unit, 0.0) > window.limit.most
