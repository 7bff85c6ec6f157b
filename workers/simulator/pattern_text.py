"""A text that matches a regular expression, for `pattern` in a JSON Schema.

Good for the expressions that people put into schemas: literals, classes, groups, alternatives, repetitions.
Look-arounds and back-references are not followed; the result is checked, and plain guesses are tried then.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

# the parser of `re` itself, under its private name: `sre_parse` warns since Python 3.11
_parser: Any = importlib.import_module("re._parser")

_GUESSES = ("simulated", "SIM-1", "sim_1", "1", "a", "A", "2026-01-01", "12345", "a@example.com", "1.0.0", "")
_CLASSES = {"CATEGORY_DIGIT": "1", "CATEGORY_SPACE": " ", "CATEGORY_WORD": "s", "CATEGORY_NOT_DIGIT": "s",
            "CATEGORY_NOT_SPACE": "s", "CATEGORY_NOT_WORD": "-"}  # fmt: skip
_SETS = {"DIGIT": r"\d", "SPACE": r"\s", "WORD": r"\w"}
_ALPHABET = "saA1_- .,:/@"


def matching(pattern: str, shortest: int = 0, longest: int | None = None) -> str:
    """A text that `pattern` is found in, within the lengths where one was found; else the best guess."""
    made = [_made(pattern, repeats) for repeats in (1, shortest, 0)]
    candidates = [text for text in made if text is not None] + list(_GUESSES)
    found = [text for text in candidates if _found(pattern, text)]
    for text in found:
        if shortest <= len(text) and (longest is None or len(text) <= longest):
            return text
    return found[0] if found else "simulated"


def _found(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:
        return False


def _made(pattern: str, repeats: int) -> str | None:
    try:
        return _text(_parser.parse(pattern), repeats)
    except (re.error, RecursionError, LookupError):
        return None


def _text(tree: Any, repeats: int) -> str:
    return "".join(_one(str(kind), value, repeats) for kind, value in tree)


def _one(kind: str, value: Any, repeats: int) -> str:
    match kind:
        case "LITERAL":
            return chr(value)
        case "NOT_LITERAL":
            return next(c for c in _ALPHABET if ord(c) != value)
        case "ANY":
            return "s"
        case "IN":
            return _of_class(value)
        case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
            low, high, inner = value
            return _text(inner, repeats) * max(int(low), min(int(high), repeats))
        case "SUBPATTERN":
            return _text(value[-1], repeats)
        case "ATOMIC_GROUP":
            return _text(value, repeats)
        case "BRANCH":
            return _text(value[1][0], repeats)
    return ""


def _of_class(items: Any) -> str:
    if str(items[0][0]) == "NEGATE":
        return next(c for c in _ALPHABET if not any(_holds(str(k), v, c) for k, v in items[1:]))
    kind, value = str(items[0][0]), items[0][1]
    if kind == "CATEGORY":
        return _CLASSES[str(value)]
    return chr(value[0] if kind == "RANGE" else value)


def _holds(kind: str, value: Any, char: str) -> bool:
    if kind == "RANGE":
        return bool(value[0] <= ord(char) <= value[1])
    if kind == "LITERAL":
        return bool(value == ord(char))
    name = str(value)
    inside = re.match(_SETS[name.rsplit("_", 1)[-1]], char) is not None
    return not inside if "_NOT_" in name else inside
