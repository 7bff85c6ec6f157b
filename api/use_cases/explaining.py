"""What the policy says of a job, where it would run, and why not elsewhere; a table of such cases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.errors import InputError, LineFault
from tasks.lines import JobLine
from tasks.privacy import Reach, Tier, permits
from tasks.providers import Provider
from tasks.registry import Registry, nearest
from tasks.routing import NOTHING, Route, Said, why_not
from tasks.schemas import parse_line
from tasks.states import JobState
from tasks.yaml_text import Way, faults, keys, understood


@dataclass(frozen=True)
class Explained:
    """A job's route in words. provider: who would run it; others: provider -> why not."""

    state: str
    tier: str
    model_class: str
    verdict: dict[str, Any]
    provider: str | None
    others: dict[str, str]


def explain(registry: Registry, line: dict[str, Any], said: Said = NOTHING) -> Explained:
    """What would become of a job line; raises InputError with its faults. Nothing is submitted."""
    route = routed(registry, line, said)
    model = line.get("model") if line.get("model") not in registry.classes else None
    reasons = {p.name: _why_not(p, route, model, registry) for p in registry.providers.values()}
    return Explained(
        state=route.state.value,
        tier=route.tier.value,
        model_class=route.model_class,
        verdict=route.verdict or {},
        provider=next((name for name, why in reasons.items() if not why), None),
        others={name: why for name, why in reasons.items() if why},
    )


def routed(registry: Registry, line: dict[str, Any], said: Said = NOTHING) -> Route:
    """A job line's route; raises InputError with its faults."""
    try:
        raw = orjson.dumps(line, option=orjson.OPT_PASSTHROUGH_DATETIME)
    except TypeError as error:  # YAML can say what JSON cannot: dates, sets, bytes
        raise InputError([LineFault(0, "", f"is no JSON ({error})")]) from None
    job = parse_line(raw, 1, registry, said)
    if isinstance(job, list):
        raise InputError([LineFault(0, f.field, f.reason) for f in job])
    return job.route


def _why_not(provider: Provider, route: Route, model: str | None, registry: Registry) -> str:
    """Why a provider would not run a job; empty for one that would."""
    if route.state is JobState.REFUSED:
        if provider.reach is Reach.CLOUD and not permits(route.tier, Reach.CLOUD):
            return f"it is {provider.reach}, and the job is {route.tier}"
        return "the job is refused"
    escalated = route.escalated_from is not None
    return why_not(provider, route.model_class, route.tier, model, registry, escalated=escalated)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Expected(_Model):
    """What a case expects; what it leaves out may be anything."""

    action: Literal["offload", "escalate", "refuse"]
    reasons: list[str] | None = None
    privacy: Tier | None = None
    detectors: list[str] | None = None


class Case(_Model):
    """One job and what is to become of it. job: a job line; pad_to: bytes that its prompt is filled up to."""

    job: dict[str, Any]
    pad_to: Annotated[int, Field(ge=1, le=16_000_000)] | None = None
    expect: Expected


class Cases(_Model):
    """A file of cases."""

    cases: list[Case] = Field(min_length=1)


@dataclass(frozen=True)
class Tried:
    """One case's outcome. wrong: in words, what was not as expected; empty when all was."""

    number: int
    category: str
    wrong: str


def try_cases(registry: Registry, text: str, source: str) -> list[Tried]:
    """Try a file of cases on the policy in force; raises ConfigError for a file that is none."""
    cases = understood(text, source, "cases", _cases)
    return [
        Tried(i, str(case.job.get("category")), "; ".join(_wrong(registry, case)))
        for i, case in enumerate(cases.cases, 1)
    ]


def _cases(data: dict[str, Any]) -> Cases:
    try:
        return Cases.model_validate(data)
    except ValidationError as error:
        raise ExceptionGroup("cases", faults(error, (), _nearest_key)) from None


def _nearest_key(way: Way) -> str:
    models: dict[str, type[BaseModel]] = {"cases": Case, "expect": Expected, "job": JobLine}
    model: type[BaseModel] = Cases
    for part in way[:-1]:
        model = models.get(str(part), model)
    return nearest(str(way[-1]), keys(model))


def _wrong(registry: Registry, case: Case) -> Iterator[str]:
    try:
        route = routed(registry, _padded(case))
    except InputError as error:
        yield f"the job is no job: {error}".replace("\n", "; ")
        return
    verdict, expected = route.verdict or {}, case.expect
    if verdict["action"] != expected.action:
        yield f"action {verdict['action']}, not {expected.action}"
    rules = {rule.id for rule in registry.policy.rules}
    reasons = [r["id"] for r in verdict.get("reasons", ()) if r["id"] in rules]
    if expected.reasons is not None and sorted(reasons) != sorted(expected.reasons):
        yield f"reasons {', '.join(reasons) or 'none'}, not {', '.join(expected.reasons) or 'none'}"
    if expected.privacy is not None and route.tier != expected.privacy:
        yield f"privacy {route.tier}, not {expected.privacy}"
    found = sorted(verdict.get("detectors", ()))
    if expected.detectors is not None and found != sorted(expected.detectors):
        yield f"detectors {', '.join(found) or 'none'}, not {', '.join(expected.detectors) or 'none'}"


def _padded(case: Case) -> dict[str, Any]:
    """The job line, its prompt filled up with dots."""
    if case.pad_to is None or not isinstance(case.job.get("prompt"), str):
        return case.job
    prompt: str = case.job["prompt"]
    return case.job | {"prompt": prompt + "." * (case.pad_to - len(prompt.encode()))}


def untried_rules(registry: Registry, text: str, source: str) -> list[str]:
    """Rules of the policy that no case expects as a reason."""
    cases = understood(text, source, "cases", _cases)
    tried = {id_ for case in cases.cases for id_ in case.expect.reasons or ()}
    return [rule.id for rule in registry.policy.rules if rule.id not in tried]
