"""Anthropic's bodies as OpenAI's chats."""

from __future__ import annotations

from typing import Any

import pytest

from api.use_cases.anthropic_bodies import chat
from tasks.config import parse
from tasks.errors import UsageError

REGISTRY = parse("aliases: {claude-mine: category:reason}", "a test")
ASK = [{"role": "user", "content": "Is it raining?"}]
WEATHER = {"name": "weather", "input_schema": {"type": "object"}}
FUNCTION = {"type": "function", "function": {"name": "weather", "description": "", "parameters": {"type": "object"}}}
PNG = {"type": "base64", "media_type": "image/png", "data": "iVBO"}


def asked(**body: Any) -> dict[str, Any]:
    return chat({"model": "small", "max_tokens": 10, "messages": ASK} | body, REGISTRY)


def said(*messages: Any, **body: Any) -> Any:
    return asked(messages=list(messages), **body)["messages"]


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words, "cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gemma3:4b", "gemma3:4b"),
        ("category:classify", "category:classify"),
        ("claude-mine", "category:reason"),
        ("claude-3-5-haiku-latest", "small"),
        ("claude-opus-9", "coder"),
        ("gpt-nonsense", "gpt-nonsense"),
    ],
)
def test_names(name: str, meant: str) -> None:
    """A name that is known stays, one that is not is what an alias says, the user's own first."""
    assert asked(model=name)["model"] == meant


def test_a_conversation_with_a_tool() -> None:
    """Results follow their calls, what the user says follows them, and thoughts are left out."""
    call = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Rome"}}
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [text("It is."), {"type": "image", "source": PNG}]}
    failed = {"type": "tool_result", "tool_use_id": "c2", "is_error": True, "content": "no such city"}
    assistant = {"role": "assistant", "content": [thought, text("I look."), call]}
    found = said(*ASK, assistant, user(text("So?"), result, failed), system=[text("Be brief."), text("Be kind.")])
    assert found == [
        {"role": "system", "content": "Be brief.\nBe kind."},
        {"role": "user", "content": "Is it raining?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "It is."},
        {"role": "tool", "tool_call_id": "c2", "content": "The tool failed: no such city"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}},
                {"type": "text", "text": "So?"},
            ],
        },
    ]


def test_turns_that_a_template_would_not_take() -> None:
    """A system that speaks later speaks first, and what one role says in a row is one message."""
    found = said(*ASK, {"role": "system", "content": "Be brief."}, user(text("Well?")), system="Be kind.")
    assert found == [
        {"role": "system", "content": "Be kind.\nBe brief."},
        {"role": "user", "content": "Is it raining?\nWell?"},
    ]


def test_documents() -> None:
    """Texts that come as documents and search results are texts."""
    plain = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A"}}
    listed = {"type": "document", "source": {"type": "content", "content": [text("B")]}}
    found = {"type": "search_result", "title": "C", "source": "https://example.org", "content": [text("D")]}
    assert said(user(plain, listed, found)) == [{"role": "user", "content": "A\nB\nC\nD"}]


@pytest.mark.parametrize(
    ("choice", "made"),
    [
        (None, {}),
        ({"type": "auto"}, {}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "tool", "name": "weather"},
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        ),
        ({"type": "auto", "disable_parallel_tool_use": True}, {"parallel_tool_calls": False}),
    ],
)
def test_choices(choice: Any, made: dict[str, Any]) -> None:
    """Which tool must be called, in OpenAI's words."""
    found = asked(tools=[WEATHER | {"cache_control": {"type": "ephemeral"}}], tool_choice=choice)
    assert {name: found[name] for name in found if "tool" in name} == {"tools": [FUNCTION]} | made


def test_sampling() -> None:
    """Limits and sampling keep their meaning, and what says nothing to a local model is left out."""
    found = asked(
        stop_sequences=["END"],
        temperature=0.5,
        top_k=5,
        stream=True,
        thinking={"type": "adaptive"},
        context_management={"edits": []},
        metadata={"user_id": "somebody", "offload": {"privacy": "local_only"}},
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        anything_new={"type": "ephemeral"},
    )
    assert found == {
        "model": "small",
        "messages": ASK,
        "max_tokens": 10,
        "stop": ["END"],
        "temperature": 0.5,
        "top_k": 5,
        "stream": True,
        "metadata": {"offload": {"privacy": "local_only"}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"type": "object"}},
        },
    }


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model": None}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": ["Hello"]}, "messages.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [user({"type": "text"})]}, "messages.0.content.0.text"),
        ({"messages": [user({"type": "server_tool_use"})]}, "messages.0.content.0.type"),
        ({"messages": [user({"type": "image", "source": {"type": "url"}})]}, "messages.0.content.0.source.type"),
        ({"messages": [user({"type": "document", "source": {"type": "base64"}})]}, "messages.0.content.0.source.type"),
        ({"messages": [user({"type": "tool_result", "content": "x"})]}, "messages.0.content.0.tool_use_id"),
        ({"messages": [{"role": "assistant", "content": [{"type": "image"}]}]}, "messages.0.content.0.type"),
        ({"system": [{"type": "image"}]}, "system.0.type"),
        ({"stop_sequences": [1]}, "stop_sequences.0"),
        ({"top_k": "many"}, "top_k"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"name": "x"}]}, "tools.0.input_schema"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "some"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"output_config": {"format": {"type": "grammar"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": 1}}}}, "output_config.format.schema"),
        ({"metadata": "me"}, "metadata"),
    ],
)
def test_faults(body: dict[str, Any], field: str) -> None:
    """What cannot be honoured is told with its field, before anything is sent."""
    with pytest.raises(UsageError) as caught:
        asked(**body)
    assert str(caught.value).partition(": ")[0] == field
