"""What may not be left to a local model, and why: rules matched against what a job says of itself.

    __init__    the rules and the judge: pure, the standard library only
    file        policy.yaml: pydantic models, and every fault with its line
    default.yaml    the policy in force where there is no policy.yaml
    cases.yaml      a table of jobs and expected verdicts, for `offload policy test`

Rules look at the category, the touched paths, the audience, the flag and the size; never at the words of a prompt.
All rules that match are kept, so that a verdict says everything that led to it.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Action(StrEnum):
    """What becomes of a job; the gravest of all matching rules counts."""

    OFFLOAD = "offload"  #: a local model may do it
    ESCALATE = "escalate"  #: only the cloud may do it
    REFUSE = "refuse"  #: nobody may do it


@dataclass(frozen=True, slots=True)
class Facts:
    """What rules look at. prompt_bytes: UTF-8; of an embedding's inputs, the longest."""

    category: str
    prompt_bytes: int = 0
    touches: tuple[str, ...] = ()
    audience: str | None = None
    security: bool = False


@dataclass(frozen=True, slots=True)
class When:
    """A rule's conditions, all of which must hold; of a list, one entry is enough. None and () ask nothing."""

    category: tuple[str, ...] = ()
    touches: tuple[str, ...] = ()
    touches_more_than: int | None = None
    audience: tuple[str, ...] = ()
    security: bool | None = None
    prompt_over_bytes: int | None = None

    def matches(self, facts: Facts) -> bool:
        """Whether every condition holds."""
        return (
            (not self.category or facts.category in self.category)
            and (not self.touches or any(_is_like(p, self.touches) for p in facts.touches))
            and (self.touches_more_than is None or len(_distinct(facts.touches)) > self.touches_more_than)
            and (not self.audience or _is_among(facts.audience, self.audience))
            and (self.security is None or facts.security is self.security)
            and (self.prompt_over_bytes is None or facts.prompt_bytes > self.prompt_over_bytes)
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """One reason not to leave a job to a local model. reason: in words, for the person who reads it."""

    id: str
    reason: str
    action: Action
    when: When


@dataclass(frozen=True, slots=True)
class Policy:
    """A versioned set of rules. hash: of the rules as they act, so that two policies of one version differ visibly."""

    name: str
    version: int
    rules: tuple[Rule, ...]
    hash: str
    source: str

    @property
    def label(self) -> str:
        """How verdicts name it."""
        return f"{self.name} v{self.version} ({self.hash})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, with every matching rule as (id, reason), in the policy's order."""

    action: Action
    reasons: tuple[tuple[str, str], ...]
    policy: str

    @property
    def words(self) -> str:
        """All reasons in one line."""
        return "; ".join(reason for _, reason in self.reasons)


def judge(policy: Policy, facts: Facts) -> Verdict:
    """The verdict on a job."""
    matching = [rule for rule in policy.rules if rule.when.matches(facts)]
    order = list(Action)
    action = max((rule.action for rule in matching), key=order.index, default=Action.OFFLOAD)
    return Verdict(action, tuple((rule.id, rule.reason) for rule in matching), policy.label)


def from_plain(plain: dict[str, Any]) -> Policy:
    """A policy out of its plain form (`dataclasses.asdict`), as the helpers keep it."""
    rules = tuple(
        Rule(r["id"], r["reason"], Action(r["action"]), When(**{k: _tupled(v) for k, v in r["when"].items()}))
        for r in plain["rules"]
    )
    return Policy(plain["name"], plain["version"], rules, plain["hash"], plain["source"])


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_among(audience: str | None, known: tuple[str, ...]) -> bool:
    return audience is not None and _folded(audience) in map(_folded, known)


def _folded(audience: str) -> str:
    """An audience for comparing: case, blanks and underscores aside."""
    return re.sub(r"[\s_]+", "-", audience.strip()).lower()


def _rooted(path: str) -> str:
    """A path for matching: forward slashes, lower case, and a slash before it, so that `*/jwt*` meets `jwt.rs`."""
    slashed = re.sub(r"/(?:\./)+|/{2,}", "/", path.strip().replace("\\", "/")).removeprefix("./").lower()
    return slashed if slashed.startswith("/") else f"/{slashed}"


def _distinct(touches: tuple[str, ...]) -> set[str]:
    return set(map(_rooted, touches))


def _is_like(path: str, globs: tuple[str, ...]) -> bool:
    rooted = _rooted(path)
    return any(_pattern(glob).match(rooted) for glob in globs)


@functools.lru_cache(maxsize=1024)
def _pattern(glob: str) -> re.Pattern[str]:
    """A glob as fnmatch means it: `*` passes slashes, case aside. One that begins with neither * nor / is a name."""
    whole = glob.replace("\\", "/").lower()
    return re.compile(fnmatch.translate(whole if whole.startswith(("*", "/")) else f"*/{whole}"))
