"""What providers' calls took of their limits: reserved before a call, corrected after it, shared by all nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, and_, delete, select, update
from sqlalchemy.sql.elements import ColumnElement

from tasks.budget import EXPECTED_OUT, Window, costs, hindrance, too_large, windows
from tasks.errors import Busy, Permanent
from tasks.ledger.database import Database, insert_new, retried
from tasks.providers import Provider
from tasks.tables import Usage

#: seconds after which a job that waits at a limit is looked at again, so that a raised limit is noticed
LOOK_AGAIN_S = 60.0
#: seconds that windows are kept
KEPT_S = 7 * 24 * 3600.0

usage = Usage.__table__  # type: ignore[attr-defined]

#: (window, amount) pairs that a call holds
Reservation = list[tuple[Window, float]]


@retried
def reserve(db: Database, provider: Provider, model: str, tokens_in: int, tokens_out: int) -> Reservation:
    """Take a call's estimated share of every limit, or of none.

    Raises Busy while a limit leaves no room, Permanent for a call that is larger than a whole window.
    """
    if not provider.limits:
        return []
    with db.write(durable=False) as c:
        now = db.now(c)
        shares = costs(provider, model, tokens_in, tokens_out)
        there = windows(provider, now)
        _hold(c, provider.name, there)
        for window in there:
            _check(c, provider, window, shares, now)
        held = [(window, shares.get(window.limit.unit, 0.0)) for window in there]
        for window, amount in held:
            _add(c, provider.name, window, amount)
        c.execute(delete(usage).where(usage.c.provider == provider.name, usage.c.began < now - KEPT_S))
    return held


def _hold(c: Connection, provider: str, there: Sequence[Window]) -> None:
    """Make the windows' rows and lock them, always in the order of the configuration."""
    rows = [
        {"provider": provider, "unit": w.limit.unit, "per": w.limit.per, "began": w.began, "amount": 0.0} for w in there
    ]
    insert_new(c, usage, rows)
    for window in there:
        c.execute(select(usage.c.amount).where(_of(provider, window)).with_for_update())


def _check(c: Connection, provider: Provider, window: Window, shares: Mapping[str, float], now: float) -> None:
    limit = window.limit
    if too_large(window, shares):
        size = f"about {shares[limit.unit]:g} {limit.unit}"
        raise Permanent("over_limit", f"one call takes {size}, and {provider.name} has {limit.most:g} a {limit.per}")
    why = hindrance(window, taken(c, provider.name, window), shares.get(limit.unit, 0.0))
    if why is not None:
        raise Busy("limit_reached", f"{provider.name} is {why}", min(window.ends - now, LOOK_AGAIN_S))


@retried
def correct(db: Database, provider: Provider, model: str, held: Reservation, actual: tuple[int, int] | None) -> None:
    """Put what a call really took, (tokens in, tokens out), in its reservation's place; None: it was not sent."""
    if not held:
        return
    shares = costs(provider, model, *actual) if actual is not None else {}
    with db.write(durable=False) as c:
        for window, reserved in held:
            _add(c, provider.name, window, shares.get(window.limit.unit, 0.0) - reserved)


def taken(c: Connection, provider: str, window: Window) -> float:
    """What this window's calls took."""
    return float(c.execute(select(usage.c.amount).where(_of(provider, window))).scalar() or 0.0)


def standing(db: Database, provider: Provider) -> list[tuple[Window, float, bool]]:
    """Each limit's present window, what was taken of it, and whether it leaves no room for one more ordinary call."""
    with db.read() as c:
        found = [(window, taken(c, provider.name, window)) for window in windows(provider, db.now(c))]
    return [(w, used, hindrance(w, used, _ordinary(provider, w)) is not None) for w, used in found]


def at_limits(db: Database, provider: Provider) -> list[str]:
    """In words: the limits that leave no room for one more ordinary call now."""
    with db.read() as c:
        there = windows(provider, db.now(c))
        why = [hindrance(window, taken(c, provider.name, window), _ordinary(provider, window)) for window in there]
    return [words for words in why if words is not None]


def _ordinary(provider: Provider, window: Window) -> float:
    """What a call of nobody's limits takes at least, or the whole window where that is less."""
    unit = window.limit.unit
    shares = [costs(provider, model, 0, EXPECTED_OUT).get(unit, 0.0) for model in provider.prices or ("",)]
    return min([window.limit.most, *(share for share in shares if share > 0)])


def _add(c: Connection, provider: str, window: Window, amount: float) -> None:
    c.execute(update(usage).where(_of(provider, window)).values(amount=usage.c.amount + amount))


def _of(provider: str, window: Window) -> ColumnElement[bool]:
    limit = window.limit
    return and_(
        usage.c.provider == provider,
        usage.c.unit == limit.unit,
        usage.c.per == limit.per,
        usage.c.began == window.began,
    )
