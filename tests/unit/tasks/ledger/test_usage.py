"""Limits: reserved before, corrected after, by whichever node; windows end where their zone says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.budget import costs, windows
from tasks.errors import Busy, ConfigError, Permanent
from tasks.ledger.usage import LOOK_AGAIN_S, at_limits, correct, reserve
from tasks.providers import Provider
from tests.unit.ledgers import Ledger


def provider(*limits: dict[str, Any], **prices: dict[str, float]) -> Provider:
    """A cloud with these limits, and prices of its model `m` by unit."""
    made = {"name": "c", "kind": "anthropic", "limits": limits, "prices": {"m": prices} if prices else {}}
    return Provider.model_validate(made)


def test_what_a_call_costs() -> None:
    """One request, its tokens, and every unit that a price is for; of another model only the first two."""
    priced = provider({"unit": "usd", "per": "day", "most": 1}, usd={"request": 0.5, "input": 2.0, "output": 10.0})
    assert costs(priced, "m", 1_000_000, 500_000) == {"requests": 1, "tokens": 1_500_000, "usd": 0.5 + 2 + 5}
    assert costs(priced, "other", 10, 5) == {"requests": 1, "tokens": 15}


def test_a_limit_is_never_passed_and_ends_with_its_window(ledger: Ledger) -> None:
    """The third request of two a minute waits, at most as long as a raised limit may go unnoticed, and then goes."""
    ledger.db.time = 1_000_020.0
    two = provider({"unit": "requests", "per": "minute", "most": 2})
    for _ in range(2):
        reserve(ledger.db, two, "m", 1, 1)
    with pytest.raises(Busy) as raised:
        reserve(ledger.db, two, "m", 1, 1)
    assert raised.value.code == "limit_reached"
    assert raised.value.retry_after is not None
    assert 0 < raised.value.retry_after <= LOOK_AGAIN_S
    assert "2 requests a minute" in at_limits(ledger.db, two)[0]
    ledger.wait(raised.value.retry_after)
    assert at_limits(ledger.db, two) == []
    reserve(ledger.db, two, "m", 1, 1)


def test_estimates_are_corrected(ledger: Ledger) -> None:
    """What a call did not take is free for others; what it took beyond its estimate is not."""
    tokens = provider({"unit": "tokens", "per": "day", "most": 1_000})
    held = reserve(ledger.db, tokens, "m", 500, 500)
    with pytest.raises(Busy):
        reserve(ledger.db, tokens, "m", 1, 0)
    correct(ledger.db, tokens, "m", held, (100, 50))
    reserve(ledger.db, tokens, "m", 850, 0)
    with pytest.raises(Busy):
        reserve(ledger.db, tokens, "m", 1, 0)


def test_all_limits_or_none(ledger: Ledger) -> None:
    """A call that one limit holds back takes nothing of the others."""
    both = provider({"unit": "requests", "per": "day", "most": 5}, {"unit": "tokens", "per": "day", "most": 10})
    reserve(ledger.db, both, "m", 10, 0)
    for _ in range(9):
        with pytest.raises(Busy):
            reserve(ledger.db, both, "m", 1, 0)
    assert any("tokens" in words for words in at_limits(ledger.db, both))
    assert not any("requests" in words for words in at_limits(ledger.db, both))


def test_a_call_larger_than_its_window_fails(ledger: Ledger) -> None:
    """It could never go, so its job ends, and says how large it is."""
    with pytest.raises(Permanent) as raised:
        reserve(ledger.db, provider({"unit": "tokens", "per": "minute", "most": 10}), "m", 11, 0)
    assert raised.value.code == "over_limit"
    assert "11 tokens" in str(raised.value)


def test_the_day_ends_in_its_zone() -> None:
    """Midnight of Los Angeles is not that of UTC, and a day of a clock change is not 24 hours."""
    at = datetime(2026, 3, 8, 12, tzinfo=UTC).timestamp()  # clocks go forward there that night
    (window,) = windows(provider({"unit": "requests", "per": "day", "most": 1, "zone": "America/Los_Angeles"}), at)
    assert datetime.fromtimestamp(window.began, UTC) == datetime(2026, 3, 8, 8, tzinfo=UTC)
    assert window.ends - window.began == 23 * 3600


@given(
    st.floats(0, 4e9), st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu"]), st.sampled_from(["minute", "day"])
)
def test_now_is_always_within_its_window(now: float, zone: str, per: str) -> None:
    """Whatever the time and the zone."""
    (window,) = windows(provider({"unit": "requests", "per": per, "most": 1, "zone": zone}), now)
    assert window.began <= now < window.ends


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"unit": "euros", "per": "day", "most": 1}, "no price says what a call costs of euros"),
        ({"unit": "requests", "per": "week", "most": 1}, "'minute' or 'day'"),
        ({"unit": "requests", "per": "day", "most": 0}, "greater than 0"),
        ({"unit": "requests", "per": "day", "most": 1, "zone": "Mars/Base"}, "no such time zone"),
        ({"unit": "requests", "per": "day", "mots": 1}, "did you mean 'most'?"),
    ],
)
def test_a_limit_that_means_nothing_is_told(limit: dict[str, Any], words: str) -> None:
    """Its place and what is wrong with it."""
    import json

    from tasks.config import parse

    text = json.dumps({"providers": [{"name": "c", "kind": "anthropic", "limits": [limit]}]})
    with pytest.raises(ConfigError) as raised:
        parse(text, "offload.yaml")
    assert words in str(raised.value)
    assert "offload.yaml:1: providers.0" in str(raised.value)
