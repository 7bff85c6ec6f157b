"""The events of a streamed message."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.http.message_events import PING, Events
from tasks.errors import BadOutput
from workers.backends import Delta, Reply


def told(raw: bytes) -> list[dict[str, Any]]:
    """The data of events, each of which is named as its type."""
    found = []
    for event in raw.decode().split("\n\n")[:-1]:
        name, _, data = event.partition("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def part(index: int, arguments: str, **more: str) -> Delta:
    head = {"id": more["id"], "type": "function"} if "id" in more else {}
    function = {"arguments": arguments} | ({"name": more["name"]} if "name" in more else {})
    return Delta(tool_calls=({"index": index, **head, "function": function},))


def test_blocks_follow_each_other() -> None:
    """Thoughts, text and each tool are blocks of their own, one closed before the next begins."""
    events = Events("m", 7)
    raw = events.first()
    for delta in (
        Delta(reasoning="Hm"),
        Delta(reasoning="."),
        Delta("Well"),
        part(0, "", id="a", name="one"),
        part(0, '{"x":'),
        Delta(),
        part(0, "1}"),
        part(1, "{}", id="b", name="two"),
    ):
        raw += events.piece(delta)
    calls = [{"id": "a"}, {"id": "b"}]
    found = told(raw + events.last(Reply("m", tool_calls=calls, tokens_in=9, tokens_out=5, tokens_thinking=2)))
    shape = [(e["type"].removeprefix("content_block_"), e.get("index")) for e in found]
    assert shape == [
        ("message_start", None),
        ("ping", None),
        *[("start", 0), ("delta", 0), ("delta", 0), ("stop", 0)],
        *[("start", 1), ("delta", 1), ("stop", 1)],
        *[("start", 2), ("delta", 2), ("ping", None), ("delta", 2), ("stop", 2)],
        *[("start", 3), ("delta", 3), ("stop", 3)],
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert found[0]["message"]["usage"]["input_tokens"] == 7
    assert [e["content_block"].get("name") for e in found if "content_block" in e] == [None, None, "one", "two"]
    assert found[-2]["delta"]["stop_reason"] == "tool_use"
    counts = found[-2]["usage"]
    assert (counts["input_tokens"], counts["output_tokens"]) == (9, 5)
    assert counts["output_tokens_details"] == {"thinking_tokens": 2}


@pytest.mark.parametrize(
    ("reply", "reason", "sequence"),
    [
        (Reply("m"), "end_turn", None),
        (Reply("m", stop_sequence="END"), "stop_sequence", "END"),
        (Reply("m", finish_reason="length"), "max_tokens", None),
    ],
)
def test_why_it_ended(reply: Reply, reason: str, sequence: str | None) -> None:
    """A stop sequence that the server named is told as Anthropic tells it."""
    found = told(Events("m", 1).last(reply))
    assert found[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_nothing_is_a_sign_of_life() -> None:
    """A piece of nothing shows that somebody is there."""
    assert Events("m", 1).piece(Delta()) == PING


def test_calls_that_are_mixed_up() -> None:
    """A piece of a tool's call whose block is closed is an error: it could not be told where it belongs."""
    events = Events("m", 1)
    events.piece(part(0, "{", id="a", name="one"))
    events.piece(part(1, "{", id="b", name="two"))
    with pytest.raises(BadOutput):
        events.piece(part(0, "}"))
