"""What calls cost, and what the cloud would have asked for them.  Pure.

A price is the `usd` of a provider's `prices`; a local provider without one costs nothing.

Avoided is what the same tokens of a local job that was done would have cost at the price of class `cloud`'s first
model, no more than a guide: the cloud's tokenizer counts differently and its model answers at another length; thinking
tokens of a local model are counted as if the cloud's would think as long; nobody says that every job would have been
sent to a cloud at all, and neither power nor hardware is counted.  Where no such price is configured it is 0.  Rollups
take off what audits, escalations and fallbacks did cost (tasks/rollups.py).
"""

from __future__ import annotations

from tasks.providers import Price, Provider
from tasks.registry import CLOUD, Registry

#: the unit of money
USD = "usd"
FREE = Price()


def cost_usd(provider: Provider, model: str, tokens_in: int, tokens_out: int) -> float:
    """What a call of so many tokens costs there."""
    return _of(_price(provider, model), tokens_in, tokens_out)


def cloud_usd(registry: Registry, tokens_in: int, tokens_out: int) -> float:
    """What a call of so many tokens would cost at class `cloud`; 0 where it has no price."""
    serve = next(iter(registry.classes[CLOUD].serve), None)
    return 0.0 if serve is None else cost_usd(registry.providers[serve.provider], serve.model, tokens_in, tokens_out)


def _price(provider: Provider, model: str) -> Price:
    return provider.prices.get(model, {}).get(USD, FREE)


def _of(price: Price, tokens_in: int, tokens_out: int) -> float:
    return price.request + (price.input * tokens_in + price.output * tokens_out) / 1e6
