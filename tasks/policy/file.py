"""policy.yaml: read, checked, and turned into the rules that the judge uses."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tasks.errors import ConfigError
from tasks.policy import Action, Policy, Rule, When
from tasks.registry import nearest
from tasks.settings import Settings
from tasks.yaml_text import Fault, Way, faults, keys, read_text, understood

#: how the shipped policy is called where people see it
SHIPPED = "the shipped policy"


def _glob(glob: str) -> str:
    if not glob.strip() or not glob.isprintable():
        raise ValueError("a glob is one line of text with something in it")
    pattern = fnmatch.translate(glob)
    if r"\[" in pattern or r"\]" in pattern or "(?!)" in pattern:  # taken for plain characters, or matching nothing
        raise ValueError("the glob's [ and ] do not fit together, or match nothing")
    return glob


def _listed(value: Any) -> Any:
    """One entry may stand without its list."""
    return [value] if isinstance(value, str) else value


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("expected one line of text")
    return text


Text = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_one_line)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_listed), Field(min_length=1)]
Globs = Annotated[
    tuple[Annotated[Text, AfterValidator(_glob)], ...], BeforeValidator(_listed), Field(min_length=1, max_length=500)
]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class WhenModel(_Model):
    """A rule's conditions as they are written; all of them must hold, and of a list one entry is enough."""

    category: Texts | None = Field(None, description="categories")
    touches: Globs | None = Field(None, description="globs of touched paths; * passes slashes, case aside")
    touches_more_than: int | None = Field(None, ge=0, description="touched paths, each counted once")
    for_: Texts | None = Field(None, alias="for", description="audiences, case aside")
    security: bool | None = Field(None, description="the job's security flag")
    prompt_over_bytes: int | None = Field(None, ge=0, description="bytes of the prompt, UTF-8")

    def plain(self) -> When:
        """The judge's form."""
        return When(
            category=self.category or (),
            touches=self.touches or (),
            touches_more_than=self.touches_more_than,
            audience=self.for_ or (),
            security=self.security,
            prompt_over_bytes=self.prompt_over_bytes,
        )


class RuleModel(_Model):
    """One rule as it is written."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    reason: Text
    action: Literal["escalate", "refuse"]
    when: WhenModel


class PolicyModel(_Model):
    """policy.yaml as it is written."""

    name: Text = "policy"
    version: int = Field(ge=1, strict=True)
    rules: tuple[RuleModel, ...]


def load_policy(settings: Settings | None, categories: Collection[str]) -> Policy:
    """The policy in force: OFFLOAD_POLICY, else the home's policy.yaml, else the shipped one; ConfigError if wrong."""
    path = policy_path(settings) if settings is not None else None
    if path is None:
        return parse_policy(shipped("default.yaml"), SHIPPED, categories)
    text = read_text(path)
    if not text.strip():
        raise ConfigError(f"{path}: is empty; remove it, or fill it: offload policy show --shipped > {path}")
    return parse_policy(text, str(path), categories)


def policy_path(settings: Settings) -> Path | None:
    """The policy file in force; None for the shipped one."""
    own = settings.home / "policy.yaml"
    return settings.policy or (own if own.exists() else None)


def shipped(name: str) -> str:
    """A file that comes with the package."""
    return files("tasks.policy").joinpath(name).read_text("utf-8")


def parse_policy(text: str, source: str, categories: Collection[str]) -> Policy:
    """The policy that a text describes; ConfigError with file, line, field and the nearest known name."""
    return understood(text, source, "name, version, rules", lambda data: _build(data, source, categories))


def _build(data: dict[str, Any], source: str, categories: Collection[str]) -> Policy:
    try:
        model = PolicyModel.model_validate(data)
    except ValidationError as error:
        raise ExceptionGroup(source, faults(error, (), _nearest_key)) from None
    found = [*_doubled_ids(model), *_empty_rules(model), *_unknown_categories(model, categories)]
    if found:
        raise ExceptionGroup(source, found)
    rules = tuple(Rule(r.id, r.reason, Action(r.action), r.when.plain()) for r in model.rules)
    acts = json.dumps([dataclasses.asdict(rule) for rule in rules], sort_keys=True)
    return Policy(model.name, model.version, rules, hashlib.sha256(acts.encode()).hexdigest()[:12], source)


def _nearest_key(way: Way) -> str:
    models: dict[str, type[BaseModel]] = {"rules": RuleModel, "when": WhenModel}
    model: type[BaseModel] = PolicyModel
    for part in way[:-1]:
        model = models.get(str(part), model)
    return nearest(str(way[-1]), keys(model))


def _doubled_ids(model: PolicyModel) -> list[Fault]:
    ids = [rule.id for rule in model.rules]
    return [Fault(("rules", i, "id"), f"two rules have the id {one!r}") for i, one in enumerate(ids) if one in ids[:i]]


def _empty_rules(model: PolicyModel) -> list[Fault]:
    return [
        Fault(("rules", i, "when"), "says nothing, so it would meet every job")
        for i, rule in enumerate(model.rules)
        if rule.when.plain() == When()
    ]


def _unknown_categories(model: PolicyModel, categories: Collection[str]) -> list[Fault]:
    return [
        Fault(
            ("rules", i, "when", "category", j),
            f"there is no category {name[:40]!r}" + nearest(name, sorted(categories)),
        )
        for i, rule in enumerate(model.rules)
        for j, name in enumerate(rule.when.category or ())
        if name not in categories
    ]


def policy_schema() -> dict[str, Any]:
    """policy.yaml as a JSON Schema, for editors."""
    schema = PolicyModel.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "policy.yaml", **schema}
