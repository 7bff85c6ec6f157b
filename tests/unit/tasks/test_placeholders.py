"""Prompts with placeholders say what is filled in, and every brace that is meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import UsageError
from tasks.placeholders import read


@given(st.text(), st.text())
def test_values_are_filled_in_as_they_are(before: str, value: str) -> None:
    """Whatever a value holds, braces too, it stands in the prompt unread; doubled braces are single ones."""
    prompt = before.replace("{", "{{").replace("}", "}}") + "{content}"
    assert read(prompt, ["content"], "it").fill({"content": value}) == before + value


def test_a_placeholder_is_counted() -> None:
    """What stands twice is filled in twice; columns may have blanks in their names."""
    template = read("{a b}, {{x}}, {a b} and {c}", ["a b", "c"], "it")
    assert template.names == {"a b", "c"}
    assert template.count("a b") == 2
    assert template.fill({"a b": "1", "c": "2"}) == "1, {x}, 1 and 2"


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("{pth}", r"it: no placeholder \{pth\} here \(did you mean 'path'\?\); a literal brace is \{\{"),
        ("{", "a { that begins no placeholder; a literal brace is {{"),
        ('{"secret": 1}', "a { that begins no placeholder"),
        ("{}", "a { that begins no placeholder"),
    ],
)
def test_anything_else_is_a_fault(prompt: str, words: str) -> None:
    """It names the nearest placeholder, and repeats nothing that may be a prompt's own words."""
    with pytest.raises(UsageError, match=words.replace("{ that", r"\{ that").replace("is {{", r"is \{\{")) as raised:
        read(prompt, ["path", "content"], "it")
    assert "secret" not in str(raised.value)
