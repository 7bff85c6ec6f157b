"""Around a call: reserved before, corrected after, given back when it was not sent, and never a job's undoing."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from tasks.errors import Busy, CallError, Offline, OutOfReach, Permanent, Transient
from tasks.ledger import usage
from tasks.providers import Provider
from tasks.tables import Usage
from tests.support.waiting import eventually
from tests.unit.ledgers import Ledger
from tests.unit.workers.jobs import asked, claimed
from workers.backends import Reply
from workers.meter import Meter

PROVIDER = Provider.model_validate(
    {
        "name": "c",
        "kind": "anthropic",
        "limits": [{"unit": "requests", "per": "day", "most": 100}, {"unit": "tokens", "per": "day", "most": 100_000}],
    }
)
ASKED = asked(claimed(prompt="x" * 350, max_tokens=500))


def taken(ledger: Ledger) -> dict[str, float]:
    return {row.unit: row.amount for row in ledger.all(Usage)}


def measure(ledger: Ledger, outcome: Reply | CallError) -> None:
    """One call that ends like this."""

    async def run() -> None:
        async with Meter(ledger.db, PROVIDER).measured(ASKED) as took:
            if isinstance(outcome, CallError):
                raise outcome
            took(outcome)

    asyncio.run(run())


def test_an_answered_call_costs_what_it_took(ledger: Ledger) -> None:
    """The server's own counts stand in the estimate's place."""
    measure(ledger, Reply("m", tokens_in=7, tokens_out=3))
    assert taken(ledger) == {"requests": 1, "tokens": 10}


@pytest.mark.parametrize(
    ("error", "requests", "tokens"),
    [
        (OutOfReach("lan_ok", "x"), 0, 0),
        (Offline("refused", "x"), 0, 0),
        (Permanent("kind_unsupported", "x"), 0, 0),
        (Permanent("bad_request", "x", "request"), 1, 0),
        (Permanent("output_too_large", "x", "answer"), 1, 600),
        (Busy("rate_limited", "x"), 1, 0),
        (Transient("stalled", "x"), 1, 600),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, CallError) else "",
)
def test_what_a_failed_call_costs(ledger: Ledger, error: CallError, requests: float, tokens: float) -> None:
    """One that was not sent costs nothing, one that was turned away a request, one that broke its estimate."""
    with pytest.raises(type(error)):
        measure(ledger, error)
    assert taken(ledger)["requests"] == requests
    assert tokens <= taken(ledger)["tokens"] <= tokens + 20


def test_a_ledger_that_is_locked_harms_no_answer(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that was paid for is kept when its use cannot be written; a call that cannot be reserved waits."""
    away = OperationalError("x", {}, Exception("database is locked"))

    def fails(*_: Any) -> Any:
        raise away

    monkeypatch.setattr(usage, "correct", fails)
    measure(ledger, Reply("m", tokens_in=7, tokens_out=3))
    monkeypatch.setattr(usage, "reserve", fails)
    with pytest.raises(Busy) as raised:
        measure(ledger, Reply("m"))
    assert raised.value.code == "ledger_away"


def test_a_call_closed_while_it_reserves_gives_back(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that is cancelled eats nothing of the limits."""
    may_go, began, real = threading.Event(), threading.Event(), usage.reserve

    def slow(*arguments: Any) -> Any:
        began.set()
        may_go.wait(10)
        return real(*arguments)

    monkeypatch.setattr(usage, "reserve", slow)

    async def run() -> None:
        async def call() -> None:
            async with Meter(ledger.db, PROVIDER).measured(ASKED):
                raise AssertionError("it was closed before")

        task = asyncio.create_task(call())
        await asyncio.to_thread(began.wait, 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        may_go.set()
        await asyncio.to_thread(eventually, lambda: taken(ledger) == {"requests": 0, "tokens": 0}, "it is given back")

    asyncio.run(run())
