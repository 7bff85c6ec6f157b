"""Where a job goes: the policy's verdict and the job's privacy meet the classes there are.  Pure.

    verdict    tier permits cloud, and there is one    else
    offload    its own class                           its own class (it waits where that reaches too far)
    escalate   class `cloud`                           refused, with every reason
    refuse     refused                                 refused

A job that names a cloud class is treated as one that escalates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tasks.categories import Category
from tasks.policy import Action, Facts, Verdict, judge
from tasks.privacy import UNSAID, Clearance, Reach, Tier, findings, permits, tightest
from tasks.providers import Provider
from tasks.registry import CLOUD, Registry
from tasks.states import JobState


class Decision(StrEnum):
    """What the pool decided on a job, as telemetry has it."""

    OFFLOAD = "offload"  #: to its own class
    ESCALATE = "escalate"  #: to the cloud, because the policy or the producer says so
    FALLBACK = "fallback"  #: to the cloud, because home failed on it or nobody served its class
    REFUSE = "refuse"
    AUDIT = "audit"  #: the pool's own question about another job


@dataclass(frozen=True, slots=True)
class Consent:
    """A person's word that detectors are overruled. at: ISO 8601, UTC."""

    why: str
    who: str
    at: str


@dataclass(frozen=True, slots=True)
class Said:
    """What is said of a whole submit, for lines that say nothing themselves; consent holds for all of them."""

    category: str | None = None
    touches: tuple[str, ...] = ()
    audience: str | None = None
    security: bool = False
    tier: Tier | None = None
    consent: Consent | None = None
    app: str | None = field(default=None, repr=False)  #: no part of what an idempotency key stands for


NOTHING = Said()


@dataclass(frozen=True, slots=True)
class Asked:
    """What one job says of itself. text: all that a detector reads; prompt_bytes: UTF-8."""

    category: str
    prompt_bytes: int
    text: str
    touches: tuple[str, ...] = ()
    audience: str | None = None
    security: bool = False
    tier: Tier | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Where a job goes, and why. state: queued or refused. verdict: JSON, kept with the job.

    escalated_from: the class that it would have gone to, where the policy sends it to the cloud instead.
    """

    model_class: str
    tier: Tier = UNSAID
    state: JobState = JobState.QUEUED
    escalated_from: str | None = None
    verdict: dict[str, Any] | None = None
    decision: Decision = Decision.OFFLOAD

    @property
    def words(self) -> str:
        """All reasons in one line."""
        return "; ".join(r["reason"] for r in (self.verdict or {}).get("reasons", ()))


def said_tier(tier: Tier | None, category: Category, registry: Registry) -> Tier:
    """The tier before detectors: the tightest of what configuration, category and job (`tier`) say."""
    return tightest(registry.privacy.default, category.privacy, tier) or UNSAID


def route(
    asked: Asked, category: Category, model_class: str, registry: Registry, consent: Consent | None = None
) -> Route:
    """The route of a job whose own class is `model_class`."""
    verdict = judge(
        registry.policy, Facts(asked.category, asked.prompt_bytes, asked.touches, asked.audience, asked.security)
    )
    found = findings(asked.text, asked.touches, registry.markers)
    overruled = frozenset(found) if consent else frozenset()
    said = said_tier(asked.tier, category, registry)
    tier = Clearance(said, overruled).tightened(found)
    to_cloud = verdict.action is Action.ESCALATE or registry.reaches.get(model_class) is Reach.CLOUD
    destination = model_class if registry.reaches.get(model_class) is Reach.CLOUD else CLOUD
    hindrances = list(_hindrances(verdict, destination, tier, said, category, registry)) if to_cloud else []
    kept = _kept(verdict, hindrances, found, consent, asked.touches)
    if hindrances or verdict.action is Action.REFUSE:
        return Route(model_class, tier, JobState.REFUSED, None, kept, Decision.REFUSE)
    if verdict.action is Action.ESCALATE and registry.reaches.get(model_class) is not Reach.CLOUD:
        return Route(CLOUD, tier, JobState.QUEUED, model_class, kept, Decision.ESCALATE)
    return Route(model_class, tier, JobState.QUEUED, None, kept, Decision.ESCALATE if to_cloud else Decision.OFFLOAD)


def why_not(
    provider: Provider, model_class: str, tier: Tier, model: str | None, registry: Registry, *, escalated: bool
) -> str:
    """Why a provider does not run a job of a class; empty for one that would.

    model: asked for by name. escalated: the job was meant for another class.
    """
    if not permits(tier, provider.reach):
        return f"it is {provider.reach}, and the job is {tier}"
    if registry.serve(model_class, provider.name, None if escalated else model) is None:
        only = f"only class {CLOUD} may do it" if escalated else f"the job is for class {model_class}"
        return f"{only}, and it serves {', '.join(registry.classes_of(provider.name)) or 'nothing'}"
    return ""


def considered(
    registry: Registry, asked: str, model_class: str, tier: Tier, model: str | None, *, escalated: bool
) -> dict[str, str]:
    """Every provider, and why it is not the one that is asked; empty for that one."""
    found = {}
    for one in registry.providers.values():
        why = why_not(one, model_class, tier, model, registry, escalated=escalated)
        found[one.name] = "" if one.name == asked else why or "another worker had room first"
    return found


def tier_now(at_submit: Tier, category: Category | None, registry: Registry) -> Tier:
    """The tier stored at submit, or what the configuration says by now where that is tighter."""
    return tightest(at_submit, category.privacy if category else None, registry.privacy.default) or at_submit


def _hindrances(
    verdict: Verdict, destination: str, tier: Tier, said: Tier, category: Category, registry: Registry
) -> Any:
    """Why a job that only the cloud may do cannot go to its class, as (id, reason)."""
    if verdict.action is Action.REFUSE:
        return
    if not permits(tier, Reach.CLOUD):
        advice = "a detector tightened it" if tier is not said else _advice(said, category, registry)
        yield "privacy", f"only the cloud may do it, and the job is {tier} ({advice})"
    if not registry.classes[destination].serve:
        yield "no-cloud", f"only the cloud may do it, and no provider serves class {destination}"
    elif category.kind == "embed" and not registry.embeds(destination):
        yield "no-cloud", f"only the cloud may do it, and no provider of class {destination} makes embeddings"


def _advice(said: Tier, category: Category, registry: Registry) -> str:
    """Whose word it is, or that nobody has said any."""
    if registry.privacy.default is said:
        return "offload.yaml says so: privacy.default"
    return "its category says so" if category.privacy is said else "privacy: cloud_ok would let it go"


def _kept(
    verdict: Verdict,
    hindrances: list[Any],
    found: dict[str, Tier],
    consent: Consent | None,
    touches: tuple[str, ...],
) -> dict[str, Any]:
    kept: dict[str, Any] = {"action": verdict.action.value, "policy": verdict.policy}
    if reasons := [*verdict.reasons, *hindrances]:
        kept["reasons"] = [{"id": id_, "reason": reason} for id_, reason in reasons]
    if touches:  # a folder that is marked later is still held against them
        kept["touches"] = list(touches)
    if found:
        kept["detectors"] = {name: tier.value for name, tier in found.items()}
    if consent is not None:
        kept["consent"] = {"why": consent.why, "who": consent.who, "at": consent.at, "overruled": sorted(found)}
    return kept
