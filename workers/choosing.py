"""A tool that must be called, at a server that cannot make its model call one: the answer is held to it instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.errors import BadOutput
from workers.backends import Reply

Tools = tuple[Mapping[str, Any], ...]

#: kinds of servers that show a model its tools, and no more
CANNOT_FORCE = frozenset({"ollama"})


def offered(kind: str, tools: Tools, choice: Any) -> tuple[Tools, Any, bool]:
    """The tools and the choice to send, and whether the answer must be a call: a tool that was named is offered alone.

    A choice that is not understood here goes on as it is: the backend refuses it by name.
    """
    if kind not in CANNOT_FORCE or not tools:
        return tools, choice, False
    match choice:
        case "required":
            return tools, None, True
        case {"type": "function", "function": {"name": str(name)}}:
            named = tuple(tool for tool in tools if _name(tool) == name)
            return (named, None, True) if named else (tools, choice, False)
    return tools, choice, False


def check_called(reply: Reply) -> None:
    """Pass where a tool was called; raises BadOutput."""
    if not reply.tool_calls:
        raise BadOutput("no_tool_call", "the model called no tool, and had to; its server cannot make it")


def _name(tool: Mapping[str, Any]) -> Any:
    function = tool.get("function")
    return function.get("name") if isinstance(function, Mapping) else None
