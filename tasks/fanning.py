"""What a fan-out asks: inputs and prompts become job lines, long texts in pieces.  Pure.

An *input* is a file, a line, a row or an agent's sample; it is one job, or where its text does not fit the class's
context one for each piece. How the answers come together again is merging.py's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from tasks.budget import CHARS_PER_TOKEN, EXPECTED_OUT
from tasks.categories import Category
from tasks.errors import InputError, LineFault
from tasks.placeholders import Template
from tasks.policy import Action
from tasks.privacy import Tier
from tasks.providers import Strict
from tasks.registry import Registry, nearest
from tasks.splitting import split

#: bytes of text that a prompt must have room for beside its template
LEAST_ROOM = 200
#: bytes that ` (part 12 of 345)` takes
PART_WORDS = 24
#: characters of a name; a line's id has 256
MOST_NAME = 200
#: inputs of one fan-out: all their names are one row of the ledger
MOST_INPUTS = 100_000
#: what is cut where it does not fit
CONTENT = "content"
#: the word of a request's kind that every class of a fan-out answers
CHAT = "chat"


class Agent(Strict):
    """One who is asked."""

    name: str = Field(min_length=1, max_length=MOST_NAME, pattern=r"\S")
    system: str | None = None
    category: str | None = None
    samples: int = Field(1, ge=1, le=1_000, description="how often it is asked")


@dataclass(frozen=True, slots=True)
class Item:
    """One input. values: placeholder -> text. touches: paths. tier: what its folder tightens it to."""

    name: str
    values: Mapping[str, str] = field(repr=False)
    touches: tuple[str, ...] = ()
    tier: Tier | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of an input, and by whom it is answered."""

    template: Template = field(repr=False)
    category: str
    system: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Shape:
    """The form of every answer."""

    json: bool = False
    schema: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def said(self) -> dict[str, Any]:
        """As a job line says it."""
        return ({"json": True} if self.json else {}) | ({"schema": self.schema} if self.schema is not None else {})


@dataclass(frozen=True, slots=True)
class Input:
    """An input with its job lines. ask: which of the asks it meets."""

    name: str
    ask: int
    lines: tuple[dict[str, Any], ...]


def chat_category(registry: Registry, name: str, where: str) -> Category:
    """A category whose answers are texts; raises InputError."""
    category = registry.categories.get(name)
    if category is None:
        reason = f"unknown category {name[:40]!r}" + nearest(name, list(registry.categories))
        raise InputError([LineFault(0, where, reason)])
    if category.kind != CHAT:
        raise InputError([LineFault(0, where, f"category {category.name} makes embeddings, which nobody can merge")])
    return category


def room(registry: Registry, category: Category, system: str | None) -> int:
    """Bytes that a prompt of this category may have: what its class holds, and no more than the policy leaves to it.

    A class that thinks needs room for its thoughts as well.
    """
    model_class = registry.classes[category.model_class]
    context = model_class.context(model_class.serve[0]) if model_class.serve else int(model_class.options["num_ctx"])
    thinks = category.think if category.think is not None else model_class.think
    answer = category.max_tokens or EXPECTED_OUT * (4 if thinks else 1)
    tokens = context - min(answer, context // 2)
    held = int(tokens * CHARS_PER_TOKEN) - len(category.system.encode()) - len((system or "").encode())
    return min([held, *_left_to_it(registry, category)])


def _left_to_it(registry: Registry, category: Category) -> Iterator[int]:
    """The sizes of prompt beyond which a rule of the policy takes jobs of this category away."""
    for rule in registry.policy.rules:
        when = rule.when
        if rule.action is Action.OFFLOAD or when.prompt_over_bytes is None:
            continue
        if not when.category or category.name in when.category:
            yield when.prompt_over_bytes


def asked(
    items: Iterable[tuple[Item, int]], asks: Sequence[Ask], shape: Shape, said: Sequence[str], registry: Registry
) -> Iterator[Input]:
    """The inputs with their lines, in order. items: each with the ask it meets. said: paths that all of them touch.

    Raises InputError for one that does not fit and has no {content} to cut.
    """
    rooms = [room(registry, chat_category(registry, ask.category, "category"), ask.system) for ask in asks]
    for number, (item, which) in enumerate(items, 1):
        ask = asks[which]
        prompts = _prompts(item, ask.template, rooms[which], number)
        common = {"category": ask.category} | shape.said
        if ask.system:
            common["system"] = ask.system
        if touches := list(dict.fromkeys([*item.touches, *said])):
            common["touches"] = touches
        if item.tier is not None:
            common["privacy"] = item.tier.value
        name = shortened(item.name)
        yield Input(
            name,
            which,
            tuple(
                {"id": name if len(prompts) == 1 else f"{name} [{i}/{len(prompts)}]", "prompt": prompt} | common
                for i, prompt in enumerate(prompts, 1)
            ),
        )


def shortened(name: str) -> str:
    """A name that fits into a line's id; the end of a path says more than its beginning."""
    return name if len(name) <= MOST_NAME else f"…{name[1 - MOST_NAME :]}"


def _prompts(item: Item, template: Template, most: int, number: int) -> list[str]:
    """The item's prompt, or one for each piece of its content."""
    whole = template.fill(item.values)
    if len(whole.encode()) <= most:
        return [whole]
    times = template.count(CONTENT)
    around = len(template.fill({**item.values, CONTENT: ""}).encode()) + PART_WORDS * max(1, template.count("path"))
    left = (most - around) // times if times else 0
    if left < LEAST_ROOM:
        reason = f"its prompt has {len(whole.encode()):,} bytes, and its class has room for {max(most, 0):,}"
        hint = "; only {content} can be cut" if not times else ", hardly more than the rest of it takes"
        raise InputError([LineFault(0, f"input {number} ({shortened(item.name)})", reason + hint)])
    pieces = split(item.values[CONTENT], left)
    return [template.fill(_piece(item.values, p, i, len(pieces))) for i, p in enumerate(pieces, 1)]


def _piece(values: Mapping[str, str], piece: str, number: int, of: int) -> dict[str, str]:
    found = {**values, CONTENT: piece}
    if "path" in values:
        found["path"] = f"{values['path']} (part {number} of {of})"
    return found
