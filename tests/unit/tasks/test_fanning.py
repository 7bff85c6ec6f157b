"""Inputs become job lines that fit their class, and long ones a line for each piece."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.config import parse
from tasks.errors import InputError
from tasks.fanning import MOST_NAME, Ask, Item, Shape, asked, room, shortened
from tasks.placeholders import read
from tasks.privacy import Tier
from tasks.registry import Registry
from tests.unit.tasks.test_schemas import REGISTRY

SMALL = parse(
    """
    providers: [{name: sim, kind: ollama, url: http://127.0.0.1:1, reach: local}]
    classes:
      tiny: {serve: [{provider: sim, model: m}], options: {num_ctx: 1024}}
      thinks: {serve: [{provider: sim, model: m}], options: {num_ctx: 4096}, think: true}
    categories:
      tiny: {class: tiny, max_tokens: 200}
      thinks: {class: thinks, max_tokens: 200}
    """,
    "test",
)


def lines(item: Item, prompt: str, registry: Registry = SMALL, **ask: Any) -> list[dict[str, Any]]:
    """The lines of one input."""
    template = read(prompt, list(item.values), "it")
    asks = [Ask(template, ask.pop("category", "tiny"), ask.pop("system", None))]
    (found,) = asked([(item, 0)], asks, ask.pop("shape", Shape()), ask.pop("said", ()), registry)
    return list(found.lines)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20_000))
def test_every_piece_fits(content: str) -> None:
    """However long a file is, each of its prompts fits its class, and together they hold all of it."""
    item = Item("a.py", {"path": "a.py", "content": content}, ("a.py",))
    found = lines(item, "{path}|{content}")
    most = room(SMALL, SMALL.categories["tiny"], None)
    assert all(len(line["prompt"].encode()) <= most for line in found)
    assert "".join(line["prompt"].split("|", 1)[1] for line in found) == content


def test_a_piece_says_which_it_is() -> None:
    """Its id and its path do, where there is more than one."""
    item = Item("a.py", {"path": "a.py", "content": "word " * 1000}, ("a.py",))
    found = lines(item, "{path}\n{content}", said=("b.py", "a.py"))
    assert [line["id"] for line in found] == [f"a.py [{i}/{len(found)}]" for i in range(1, len(found) + 1)]
    assert found[1]["prompt"].startswith(f"a.py (part 2 of {len(found)})\n")
    assert {tuple(line["touches"]) for line in found} == {("a.py", "b.py")}
    assert lines(Item("b", {"content": "short"}), "{content}")[0]["id"] == "b"


def test_lines_say_what_holds_for_all_of_them() -> None:
    """Category, system text, form of the answer, and the tier of their folder."""
    item = Item("a", {"line": "x"}, (), Tier.LOCAL_ONLY)
    (line,) = lines(item, "{line}", system="Be brief.", shape=Shape(json=True))
    assert line == {
        "id": "a",
        "prompt": "x",
        "category": "tiny",
        "json": True,
        "system": "Be brief.",
        "privacy": "local_only",
    }


def test_only_content_is_cut() -> None:
    """Any other input that does not fit is a fault by name, without a word of it."""
    with pytest.raises(
        InputError, match=r"input 1 \(7\): its prompt has .* bytes.*only \{content\} can be cut"
    ) as raised:
        lines(Item("7", {"line": "word " * 2000}), "{line}")
    assert "word" not in str(raised.value)
    with pytest.raises(InputError, match="hardly more than the rest of it takes"):
        lines(Item("7", {"line": "word " * 600, "content": "x"}), "{line}{content}")


@pytest.mark.parametrize(("name", "words"), [("tinny", "did you mean 'tiny'"), ("embed", "nobody can merge")])
def test_the_category_answers_with_texts(name: str, words: str) -> None:
    """An unknown one, and one that makes vectors, are faults."""
    with pytest.raises(InputError, match=words):
        lines(Item("a", {"line": "x"}), "{line}", category=name)


def test_room_is_left_for_the_answer_and_the_thoughts() -> None:
    """A class's context holds prompt, system text and answer; a policy's limit on prompts is kept, too."""
    tiny, thinks = SMALL.categories["tiny"], SMALL.categories["thinks"]
    assert room(SMALL, tiny, None) == int((1024 - 200) * 3.5)
    assert room(SMALL, tiny, "x" * 100) == int((1024 - 200) * 3.5) - 100
    assert room(SMALL, thinks.model_copy(update={"max_tokens": None}), None) == int(4096 / 2 * 3.5)
    assert room(REGISTRY, REGISTRY.categories["reason"], None) == 16_384, (
        "what the shipped policy leaves to local models"
    )


def test_names_are_cut_at_their_beginning() -> None:
    """A line's id has room for them and for the number of a piece."""
    assert shortened("a" * 300 + "/end.py").endswith("/end.py")
    assert len(shortened("a" * 300)) == MOST_NAME
