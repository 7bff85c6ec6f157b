"""Prompts with placeholders: `{name}` stands for a value, `{{` and `}}` for braces.  Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tasks.errors import UsageError
from tasks.registry import nearest

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}\n]{1,100})\}|\{")
#: a name that may be repeated in a message; anything else may be a piece of a prompt
_NAME = re.compile(r"[\w .-]{1,40}")


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt, read. parts: (text, None) and ("", placeholder), in their order."""

    parts: tuple[tuple[str, str | None], ...]

    @property
    def names(self) -> frozenset[str]:
        """The placeholders in it."""
        return frozenset(name for _, name in self.parts if name is not None)

    def count(self, name: str) -> int:
        """How often a placeholder stands in it."""
        return sum(name == found for _, found in self.parts)

    def fill(self, values: Mapping[str, str]) -> str:
        """The prompt with its values, which are not read again."""
        return "".join(text if name is None else values[name] for text, name in self.parts)


def read(text: str, known: Collection[str], where: str) -> Template:
    """Read a prompt; raises UsageError for a placeholder that is not known. where: what messages call the prompt."""
    parts: list[tuple[str, str | None]] = []
    at = 0
    for match in _TOKEN.finditer(text):
        parts.append((text[at : match.start()], None))
        at = match.end()
        name = match[1]
        if match[0] in ("{{", "}}"):
            parts.append((match[0][0], None))
        elif name in known:
            parts.append(("", name))
        else:
            raise UsageError(f"{where}: {_fault(name, known)}; a literal brace is {{{{")
    parts.append((text[at:], None))
    return Template(tuple(part for part in parts if part != ("", None)))


def _fault(name: str | None, known: Collection[str]) -> str:
    if name is None or not _NAME.fullmatch(name):
        return "a { that begins no placeholder"
    return f"no placeholder {{{name}}} here" + nearest(name, sorted(known))
