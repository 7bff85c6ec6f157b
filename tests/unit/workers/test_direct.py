"""What the API's own way makes of the errors of a provider, for the request at hand and for those that follow."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tasks.errors import Busy, CallError, Misconfigured
from tests.unit.ledgers import Ledger
from tests.unit.workers.jobs import REGISTRY, claimed
from workers.backends import Call, Health, Probe, Reply
from workers.direct import Direct, Given, Wish


class Acting:
    """A backend that fails at some models, and answers the others."""

    def __init__(self, errors: dict[str, CallError]) -> None:
        self.asked: list[str] = []
        self._errors = errors

    async def call(self, call: Call) -> Reply:
        """Its error, or an answer."""
        self.asked.append(call.model)
        if call.model in self._errors:
            raise self._errors[call.model]
        return Reply(call.model, "hello")

    async def probe(self) -> Probe:
        """Nothing has changed."""
        return Probe(Health.MISCONFIGURED)

    async def aclose(self) -> None:
        """Nothing is open."""


async def asked(direct: Direct, model_class: str) -> Given:
    return await direct.ask(claimed(model_class=model_class), Wish())


def acting(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, errors: dict[str, CallError]) -> tuple[Direct, Acting]:
    """A way to providers that all have one backend."""
    backend = Acting(errors)
    monkeypatch.setattr("workers.direct.for_provider", lambda *_: backend)
    rows: list[dict[str, Any]] = []
    return Direct(ledger.db, REGISTRY, "node", rows.append, frozenset), backend


def test_a_model_that_is_missing_shuts_nobody_else_out(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request goes on to the next provider, and the provider without that model still serves its others."""

    async def run() -> None:
        direct, backend = acting(ledger, monkeypatch, {"narrow": Misconfigured("model_not_found", "no narrow here")})
        first, second = [(await asked(direct, "wide")).reply.model for _ in range(2)]
        assert (first, second) == ("wide", "wide")
        assert (await asked(direct, "small")).reply.model == "tiny"
        assert {health for *_, health in direct.standing().values()} == {"healthy"}
        assert "narrow" in backend.asked
        await direct.aclose()

    asyncio.run(run())


def test_a_provider_that_refuses_the_key_is_left_alone(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is no single model's: nothing more is sent there until a probe is fine."""

    async def run() -> None:
        direct, backend = acting(ledger, monkeypatch, {"narrow": Misconfigured("unauthorized", "no such key")})
        for _ in range(2):
            assert (await asked(direct, "wide")).reply.model == "wide"
        with pytest.raises(CallError):
            await asked(direct, "small")
        assert backend.asked.count("narrow") == 1
        assert direct.standing()["gpu"][2] == "misconfigured"
        await direct.aclose()

    asyncio.run(run())


def test_a_lone_provider_that_is_busy_says_for_how_long(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes after a long Retry-After is told that it is busy and the rest of that time; nobody is away."""

    async def run() -> None:
        direct, backend = acting(ledger, monkeypatch, {"tiny": Busy("rate_limited", "it answered 429", 40.0)})
        for _ in range(2):
            with pytest.raises(Busy) as caught:
                await asked(direct, "small")
            assert caught.value.retry_after == pytest.approx(40.0, abs=5.0)
        assert "it answered 429" in str(caught.value)
        assert len(backend.asked) == 1, "it is left alone meanwhile"
        await direct.aclose()

    asyncio.run(run())
