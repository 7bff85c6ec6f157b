"""What the helpers print: the answer on stdout, one line about it on stderr."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

#: exit codes: usage or configuration; the answer is no JSON; anything else
USAGE, NOT_JSON, FAILED = 2, 3, 1

_FENCE = re.compile(r"```[ \t]*(?:json)?[ \t]*\r?\n(.*)```", re.IGNORECASE | re.DOTALL)
_BLANKS = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer. tokens: of it. validated: False where it was to be JSON and is none."""

    text: str
    model: str
    category: str
    tokens: int
    duration_ms: float
    validated: bool = True


def deliver(answer: Answer) -> int:
    """Print an answer and its line; the exit code."""
    code = print_output(answer.text) if answer.validated else NOT_JSON
    if code in (0, NOT_JSON):
        model = "_".join(answer.model.split()) or "?"  # a server may call it anything, and the line is one
        say(
            f"[offload] model={model} category={answer.category} tokens={answer.tokens} "
            f"duration_ms={round(answer.duration_ms)} validated={str(answer.validated).lower()}"
        )
    return code


def print_output(text: str) -> int:
    """Print text with one newline at its end, in UTF-8 wherever it goes; the exit code."""
    try:
        sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace") + b"\n")
        sys.stdout.flush()
    except BrokenPipeError:  # `… | head` is no fault, and Python's last flush must not find one
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        say(f"the output cannot be written ({error.strerror})")
        return FAILED
    return 0


def say(words: str) -> None:
    """A line for the person, where there is one who reads it."""
    with suppress(OSError):
        if sys.stderr is not None:
            print(words, file=sys.stderr, flush=True)


def one_json(text: str) -> str | None:
    """The one JSON value that `text` is, without a fence around it; None for anything else.

    It takes what tasks/validation.py takes (a test holds them equal): no NaN, no key twice, no integer beyond 64 bits.
    """
    bare = text.strip(_BLANKS)
    fenced = _FENCE.fullmatch(bare)
    inner = fenced[1].strip(_BLANKS) if fenced else bare
    try:
        value = json.loads(
            inner, object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
        )
    except (ValueError, RecursionError):
        return None
    return inner if _depth_fits(value) else None


def _depth_fits(value: Any, levels: int = 200) -> bool:
    if not isinstance(value, dict | list):
        return True
    parts = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_depth_fits(part, levels - 1) for part in parts)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise ValueError
    return int(digits)


def _float(digits: str) -> float:
    if not math.isfinite(float(digits)):
        raise ValueError
    return float(digits)


def _constant(_: str) -> NoReturn:
    raise ValueError
