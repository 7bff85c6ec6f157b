"""The helpers' command lines: words, flags that may stand anywhere before `--`, and what a prompt may be."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tasks.errors import UsageError

#: how many values an option takes; ALL: every argument up to the next that begins with --
NONE, ONE, ALL = range(3)

#: a prompt may begin with dashes too, as a diff does: only what looks like an option is taken for one
_OPTION = re.compile(r"(--[a-z][a-z-]*)(?:=(.*))?", re.DOTALL)


@dataclass
class Given:
    """What a command line says: its words, and the values of its options."""

    words: list[str] = field(default_factory=list)
    values: dict[str, list[str]] = field(default_factory=dict)

    def __contains__(self, option: str) -> bool:
        return option in self.values

    def one(self, option: str) -> str | None:
        """The value of an option that is given once."""
        values = self.values.get(option, [])
        if len(values) > 1:
            raise UsageError(f"{option} is given twice")
        return values[0] if values else None


def parse(arguments: Sequence[str], options: Mapping[str, int]) -> Given:
    """Words and options; raises UsageError, whose words quote no argument but an option's name."""
    given = Given()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "-h" and not given.words:
            argument = "--help"
        if argument == "--":
            given.words += rest
            break
        match = _OPTION.fullmatch(argument)
        if match is None:
            given.words.append(argument)
            continue
        name, value = match[1], match[2]
        if name not in options:
            raise UsageError(f"no option {name[:40]}; there are {', '.join(options)}")
        given.values.setdefault(name, []).extend(_values(name, options[name], value, rest))
    return given


def _values(name: str, takes: int, value: str | None, rest: list[str]) -> list[str]:
    """The values of one option, taken off the rest of the line."""
    if takes == NONE:
        if value is not None:
            raise UsageError(f"{name} takes no value")
        return []
    if value is not None:
        values = [value]
    else:
        end = next((i for i, one in enumerate(rest) if one.startswith("--")), len(rest))
        values = rest[: end if takes == ALL else min(end, 1)]
        del rest[: len(values)]
    if not values or not all(one.strip() for one in values):
        raise UsageError(f"{name} needs a value")
    return values


def category_and_prompt(given: Given) -> tuple[str, str]:
    """The two words of a call, a prompt of `-` read from stdin; raises UsageError."""
    if len(given.words) != 2:
        hint = "; --touches takes every argument up to the next that begins with --" if "--touches" in given else ""
        raise UsageError(f"expected a category and a prompt, not {len(given.words)} words{hint}")
    category, prompt = given.words
    if prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError:
            raise UsageError("the prompt is not UTF-8") from None
    if not prompt.strip():
        raise UsageError("the prompt is empty")
    if "\0" in prompt:
        raise UsageError("the prompt holds a NUL character")
    return category, prompt


def check_text(arguments: Sequence[str]) -> None:
    """Pass where every argument is UTF-8; raises UsageError."""
    if any("\ud800" <= c <= "\udfff" for argument in arguments for c in argument):
        raise UsageError("the command line is not UTF-8")
