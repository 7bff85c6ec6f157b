"""What the simulator says: a pure function of the Ask and the fault it meets.

The text has the shape of the work asked for, so that a pool's checks pass, and says that it is simulated.
The kind of work is read from the mark `Task: <category>.` in the system text, or else in the prompt.
"""

from __future__ import annotations

import re
from hashlib import sha256

import orjson

from tasks.labels import offered_labels
from workers.simulator.asks import Ask, Reply, Tool, context_tokens, tokens
from workers.simulator.faults import NOTHING, Meeting
from workers.simulator.json_from_schema import instance
from workers.simulator.spoiled import spoil_answer, thoughts
from workers.simulator.vectors import embed, spoil

_TASK = re.compile(r"\bTask: ([a-z][a-z-]*)\.")
_ASKED_FIELDS = re.compile(r"\bfields?:?\s+((?:['\"`][\w-]+['\"`](?:\s*,\s*|\s+and\s+)?)+)", re.IGNORECASE)
_QUOTED = re.compile(r"['\"`]([\w-]+)['\"`]")

_CODE = '```python\n# simulated code {mark}\ndef simulated_{mark}() -> str:\n    return "simulated"\n```'
_SCAFFOLD = (
    "```python\n# simulated test scaffold {mark}\ndef test_simulated_{mark}() -> None:\n"
    "    result = 1 + 1\n    assert result == 2\n```"
)
_DESIGN = (
    "## Overview\n\nThis is a simulated design, number {mark}. It stands for an answer to the request.\n\n"
    "## Parts\n\nOne part takes the work in, one does it, and one keeps the results.\n\n"
    "## Risks\n\nNothing here was thought about; a real model must be asked before anything is built."
)
TEXTS = {
    "summarize": "This simulated summary {mark} stands for a text of {words} words.",
    "extract": "simulated: true\nwords: {words}\nmark: {mark}",
    "naming": "simulated_name_{mark}",
    "commit-msg": "Add simulated change {mark}",
    "translate": "Voici une traduction simulée, numéro {mark}.",
    "rewrite": "Said differently, this simulated passage {mark} keeps its meaning.",
    "code": _CODE,
    "refactor": _CODE,
    "test-scaffold": _SCAFFOLD,
    "comment": "# Simulated comment {mark}: says why the code below is there.",
    "explain": "This simulated explanation {mark} describes in plain prose what the code does and why.",
    "reason": (
        "This is simulated reasoning {mark}. The question is taken apart, and each part is looked at alone. "
        "Then the parts are weighed against each other. The conclusion is that a real model has to be asked."
    ),
    "plan": "1. Read the simulated request {mark}.\n2. Do the simulated work.\n3. Check it.",
    "design": _DESIGN,
}
_OTHER = "This is a simulated answer {mark} to a prompt of {words} words."


def category(system: str, prompt: str) -> str:
    """The kind of work asked for, "" when nothing says."""
    match = _TASK.search(system) or _TASK.search(prompt)
    return match[1] if match else ""


def fingerprint(model: str, prompt: str) -> int:
    """48 bits that stand for model and prompt."""
    return int.from_bytes(sha256(f"{model}\0{prompt}".encode("utf-8", "replace")).digest()[:6], "big")


def answer(ask: Ask) -> str:
    """The text for an Ask, obeying its shape; no fault yet."""
    seed = fingerprint(ask.model, ask.prompt)
    if isinstance(ask.shape, dict):
        return orjson.dumps(instance(ask.shape, seed)).decode()
    if ask.shape == "json":
        return orjson.dumps(_plain_json(ask, seed)).decode()
    return _text(ask, seed)


def _text(ask: Ask, seed: int) -> str:
    kind = category(ask.system, ask.prompt)
    if kind == "classify":
        return label(ask.prompt, seed)
    return TEXTS.get(kind, _OTHER).format(mark=f"{seed & 0xFFFF:04x}", words=len(ask.prompt.split()))


def label(prompt: str, seed: int) -> str:
    """One of the labels that the prompt offers."""
    offered = offered_labels(prompt)
    return offered[seed % len(offered)] if offered else "simulated-label"


def _plain_json(ask: Ask, seed: int) -> dict[str, object]:
    made: dict[str, object] = {"simulated": True, "mark": f"{seed & 0xFFFF:04x}"}
    if category(ask.system, ask.prompt) == "classify":
        made["label"] = label(ask.prompt, seed)
    for match in _ASKED_FIELDS.finditer(ask.prompt):
        made |= dict.fromkeys(_QUOTED.findall(match[1]), "simulated")
    return made


def compose(ask: Ask, meeting: Meeting = NOTHING, paced: bool = False) -> Reply:
    """The whole reply, with whatever the fault does to an answer; token counts follow from its texts."""
    if ask.only:
        return Reply(finish=ask.only)
    if ask.inputs:
        return _embedding(ask, meeting)
    if ask.tool is not None and meeting.fault is None:
        return _called(ask, ask.tool)
    reply = Reply(text=answer(ask), tokens_in=min(tokens(ask.system + ask.prompt), ask.context or 1 << 60))
    if ask.think:
        reply.reasoning = thoughts(ask)
    if ask.swallowed:
        reply.reasoning, reply.text = reply.reasoning + "\n" + reply.text, ""
    if meeting.fault is not None:
        spoil_answer(ask, reply, meeting.fault)
    _limit(ask, reply, huge=meeting.name == "huge")
    reply.piece = 4 if paced else 32
    return reply


def _called(ask: Ask, tool: Tool) -> Reply:
    """A model that has tools and no result yet calls the first."""
    arguments = instance(tool.parameters, fingerprint(ask.model, ask.prompt))
    reply = Reply(call=(tool.name, arguments if isinstance(arguments, dict) else {}), tokens_in=tokens(ask.prompt))
    reply.tokens_out = tokens(orjson.dumps(reply.call).decode())
    return reply


def _embedding(ask: Ask, meeting: Meeting) -> Reply:
    size = min(ask.dimensions or ask.spec.dimensions, ask.spec.dimensions)
    vectors = [embed(ask.model, text, size) for text in ask.inputs]
    most = ask.context or 1 << 60
    return Reply(
        vectors=spoil(vectors, meeting.name) if meeting.fault else vectors,
        tokens_in=sum(min(tokens(text), most) for text in ask.inputs),
    )


def _limit(ask: Ask, reply: Reply, huge: bool) -> None:
    """Cut at a stop text and at max_tokens, which thoughts use up first; then count."""
    for stop in ask.stops:
        if stop and stop in reply.text:
            reply.text, reply.finish, reply.stopped_at = reply.text.split(stop, 1)[0], "stop_sequence", stop
    thinking = tokens(reply.reasoning) if reply.reasoning else 0
    if ask.max_tokens and not huge:
        left = max(0, ask.max_tokens - thinking) * 4
        if len(reply.text) > left or thinking > ask.max_tokens:
            reply.reasoning = reply.reasoning[: ask.max_tokens * 4]
            reply.text, reply.finish = reply.text[:left], "length"
            thinking = min(thinking, ask.max_tokens)
    reply.tokens_thinking = thinking
    reply.tokens_out = max(1, thinking + (tokens(reply.text) if reply.text else 0))


def fits(ask: Ask) -> bool:
    """Whether the prompt (each input of an embedding) fits the context."""
    if not ask.context:
        return True
    if ask.inputs:
        return max(context_tokens(text) for text in ask.inputs) <= ask.context
    return context_tokens(ask.system + ask.prompt) <= ask.context
