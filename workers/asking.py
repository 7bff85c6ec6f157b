"""A job becomes a Call: the category's treatment, the class's pinned options, the provider's model.  Pure."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from tasks.budget import CHARS_PER_TOKEN
from tasks.categories import Category
from tasks.errors import Permanent
from tasks.ledger.claims import Claimed
from tasks.privacy import Clearance, Reach, Tier, permits
from tasks.providers import Provider
from tasks.registry import CLOUD, ModelClass, Registry, Serve
from tasks.routing import considered, tier_now
from tasks.schemas import prompt_text
from workers.backends import Call, Timeouts

#: added to the temperature with every attempt after a rejected answer: asking the same way again gives the same
WARMER = 0.3

JSON_ONLY = "Answer with one JSON value and nothing else."


@dataclass(frozen=True, slots=True)
class Asked:
    """A call, and what its answer is held against."""

    call: Call
    category: Category
    model_class: ModelClass
    prompt: str
    json: bool
    schema: dict[str, Any] | None
    inputs: int | None  #: how many vectors are wanted; None for text
    one_vector: bool  #: `input` was a single text
    reach: Reach  #: of the provider that is asked
    goes_on: bool  #: to class `cloud`, if its answers fail their checks
    provider: Provider
    considered: Mapping[str, str]  #: provider -> why not it; empty for the one that is asked
    registry: Registry


def ask(job: Claimed, registry: Registry, provider: str) -> Asked:
    """What to send for a job; raises Permanent where it cannot be run here."""
    category = registry.category(job.category)
    model_class = registry.classes.get(job.model_class)
    # a model was asked for of the class that the job was meant for
    serve = registry.serve(job.model_class, provider, None if job.escalated else job.model)
    if category is None or model_class is None or serve is None:
        raise Permanent("not_configured", f"provider {provider} is not configured for class {job.model_class}")
    body = orjson.loads(job.body)
    prompt = prompt_text(body)
    _check_fits(body, prompt, category, model_class, serve)
    reach = registry.providers[provider].reach
    clearance = _clearance(job, category, registry)
    call = _call(job, body, category, model_class, serve, clearance)
    return Asked(
        call,
        category,
        model_class,
        prompt,
        call.json,
        call.schema,
        inputs=len(call.inputs) if call.kind == "embed" else None,
        one_vector=isinstance(body.get("input"), str),
        reach=reach,
        goes_on=_goes_on(category, reach, clearance.tier, registry),
        provider=registry.providers[provider],
        considered=considered(registry, provider, job.model_class, clearance.tier, job.model, escalated=job.escalated),
        registry=registry,
    )


def _clearance(job: Claimed, category: Category, registry: Registry) -> Clearance:
    """The tier of this moment, and the detectors that a person overruled."""
    tier = tier_now(Tier(job.tier), category, registry)
    if not job.verdict or not any(name in job.verdict for name in (b'"consent"', b'"touches"')):
        return Clearance(tier)
    kept = orjson.loads(job.verdict)
    consent = kept.get("consent")
    overruled = frozenset(consent["overruled"]) if consent else frozenset()
    return Clearance(tier, overruled, tuple(kept.get("touches", ())))


def _goes_on(category: Category, reach: Reach, tier: Tier, registry: Registry) -> bool:
    """Whether an answer that fails its checks sends the job on to class `cloud`."""
    wanted = category.on_failure == "escalate" and reach is not Reach.CLOUD and permits(tier, Reach.CLOUD)
    return wanted and registry.has_cloud and (category.kind != "embed" or registry.embeds(CLOUD))


def _check_fits(body: dict[str, Any], prompt: str, category: Category, model_class: ModelClass, serve: Serve) -> None:
    """A prompt that no model of the class can hold fails here, before anything is sent."""
    longest = max(map(len, body["input"])) if isinstance(body.get("input"), list) else len(prompt)
    tokens = (longest + len(category.system) + len(body.get("system") or "")) / CHARS_PER_TOKEN
    context = model_class.context(serve)  # the same for all models of a class: the configuration sees to it
    if tokens > context:
        raise Permanent(
            "prompt_too_long",
            f"about {int(tokens)} tokens, and no model of class {model_class.name} holds more than {context}",
        )


def _call(
    job: Claimed,
    body: dict[str, Any],
    category: Category,
    model_class: ModelClass,
    serve: Serve,
    clearance: Clearance,
) -> Call:
    schema = body.get("schema")
    json = bool(body.get("json", category.json) or schema is not None) and category.kind == "chat"
    kind: Literal["chat", "complete", "embed"] = "embed" if category.kind == "embed" else body.get("kind", "chat")
    inputs = body.get("input") or body.get("prompt") or ""
    return Call(
        kind=kind,
        model=serve.model,
        messages=_messages(body, category, json) if kind == "chat" else [],
        prompt=body.get("prompt", "") if kind == "complete" else "",
        inputs=([inputs] if isinstance(inputs, str) else inputs) if kind == "embed" else [],
        json=json,
        schema=schema,
        think=category.think if category.think is not None else model_class.think,
        max_tokens=body.get("max_tokens", category.max_tokens),
        temperature=_temperature(body, category, json, job.attempts),
        extras=body.get("extras", {}),
        options=model_class.options,
        timeouts=_timeouts(model_class, body.get("timeout_s")),
        clearance=clearance,
    )


def _messages(body: dict[str, Any], category: Category, json: bool) -> list[dict[str, Any]]:
    """The category's instructions, the job's own, then the conversation."""
    system = _instructions(category.system, json)
    if own := body.get("system"):
        system = f"{system}\n{own}".lstrip()
    conversation = body.get("messages") or [{"role": "user", "content": body["prompt"]}]
    if (
        system
        and conversation[0]["role"] in ("system", "developer")
        and isinstance(conversation[0].get("content"), str)
    ):
        first, *rest = conversation
        return [{"role": "system", "content": f"{system}\n{first['content']}"}, *rest]
    return [{"role": "system", "content": system}, *conversation] if system else list(conversation)


@functools.lru_cache(maxsize=256)
def _instructions(system: str, json: bool) -> str:
    """A category says how its text should look; for JSON only what the task is still holds."""
    if not json:
        return system
    task = system.partition(". ")[0]
    return f"{task}. {JSON_ONLY}" if task else JSON_ONLY


def _temperature(body: dict[str, Any], category: Category, json: bool, attempts: int) -> float | None:
    if (asked := body.get("temperature")) is not None:
        return float(asked)
    base = 0.0 if json else category.temperature
    return base if not attempts else round((base or 0.0) + WARMER * attempts, 2)


@functools.lru_cache(maxsize=256)
def _timeouts_of(connect: float, load: float, first: float, between: float, total: float) -> Timeouts:
    return Timeouts(connect=connect, load=load, first_token=first, between_tokens=between, total=total)


def _timeouts(model_class: ModelClass, timeout_s: float | None) -> Timeouts:
    t = model_class.timeouts
    total = t.total if timeout_s is None else min(t.total, timeout_s)
    return _timeouts_of(t.connect, t.load, t.first_token, t.between_tokens, total)
