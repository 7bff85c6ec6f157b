"""What faults do to an answer: thoughts in the wrong place, or a text that no check should pass."""

from __future__ import annotations

from collections.abc import Callable

import orjson

from workers.simulator.asks import Ask, Reply
from workers.simulator.faults import Fault
from workers.simulator.json_from_schema import offending

#: offered nowhere, and too long where nothing is offered
WRONG_LABEL = "simulated-label-that-no-prompt-offers-and-that-is-longer-than-sixty-characters"

#: how thoughts of a family stand in the content (contracts/reasoning-leaks.md); {0} thoughts, {1} answer
LEAKS = {
    "think": "<think>\n{0}\n</think>\n\n{1}",
    "lone-close": "{0}\n</think>\n\n{1}",
    "kimi": "◁think▷{0}◁/think▷{1}",
    "gpt-oss": "<|channel|>analysis<|message|>{0}<|end|><|start|>assistant<|channel|>final<|message|>{1}",
    "gemma": "<|channel>thought\n{0}<channel|>{1}",
    "granite": "Here's my thought process:\n{0}\nHere's my response:\n{1}",
    "mistral": "[THINK]{0}[/THINK]{1}",
}
_OPENERS = {name: text.split("{0}")[0] for name, text in LEAKS.items()} | {"lone-close": "<think>\n"}


def spoil_answer(ask: Ask, reply: Reply, fault: Fault) -> None:
    """Change `reply` as the fault says; a fault of another kind changes nothing."""
    if spoiler := _SPOILERS.get(fault.name):
        spoiler(ask, reply, fault)


def thoughts(ask: Ask) -> str:
    """What stands where a model's thoughts would."""
    return f"Simulated thoughts about a prompt of {len(ask.prompt)} characters."


def _think(ask: Ask, reply: Reply, fault: Fault) -> None:
    reply.reasoning = reply.reasoning or thoughts(ask)


def _empty(ask: Ask, reply: Reply, fault: Fault) -> None:
    reply.reasoning, reply.text = f"{reply.reasoning}\n{reply.text}".strip(), ""


def _leak(ask: Ask, reply: Reply, fault: Fault) -> None:
    reply.text = LEAKS[_family(fault)].format(thoughts(ask), reply.text)


def _leak_open(ask: Ask, reply: Reply, fault: Fault) -> None:
    reply.text = _OPENERS[_family(fault)] + thoughts(ask)


def _family(fault: Fault) -> str:
    return fault.arg if fault.arg in LEAKS else "think"


def _truncated(ask: Ask, reply: Reply, fault: Fault) -> None:
    reply.text, reply.finish = reply.text[: max(1, len(reply.text) // 2)], "length"


def _badjson(ask: Ask, reply: Reply, fault: Fault) -> None:
    reply.text = '{"simulated": true, "broken": [1, 2'


def _wrongschema(ask: Ask, reply: Reply, fault: Fault) -> None:
    reply.text = orjson.dumps(offending(ask.shape)).decode()


def _wronglabel(ask: Ask, reply: Reply, fault: Fault) -> None:
    reply.text = WRONG_LABEL


def _huge(ask: Ask, reply: Reply, fault: Fault) -> None:
    size = int(fault.number(16) * 1_000_000)
    reply.text = ("simulated " * (size // 10 + 1))[:size]


def _nul(ask: Ask, reply: Reply, fault: Fault) -> None:
    reply.text = f"{reply.text}\0simulated\0"


_SPOILERS: dict[str, Callable[[Ask, Reply, Fault], None]] = {
    "think": _think, "empty": _empty, "leak": _leak, "leak-open": _leak_open, "truncated": _truncated,
    "badjson": _badjson, "wrongschema": _wrongschema, "wronglabel": _wronglabel, "huge": _huge, "nul": _nul,
}  # fmt: skip
