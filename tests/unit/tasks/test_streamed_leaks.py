"""Thoughts that stand before a streamed answer never go out as the answer, however they are cut."""

from __future__ import annotations

import pytest

from tasks.leaks import normalise
from tasks.streamed_leaks import MOST_HELD, Parting
from tests.unit.tasks.test_leaks import FAMILIES


def parted(pieces: list[str]) -> tuple[str, str, bool]:
    """Answer and thoughts of a stream, each put together, and whether any leaked."""
    parting = Parting()
    told = [*map(parting.take, pieces), parting.end()]
    return "".join(answer for answer, _ in told), "".join(thought for _, thought in told), parting.leaked


def cut(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 2, 5, 7, 1000])
@pytest.mark.parametrize(("opener", "closer"), FAMILIES.values(), ids=FAMILIES)
def test_every_family_is_taken_out(opener: str, closer: str, size: int) -> None:
    """A thought before the answer goes to the thoughts, and the answer is that of the whole text."""
    text = f"\n{opener} weigh <it> [\n{closer}\n\nthe <answer>"
    answer, thought, leaked = parted(cut(text, size))
    assert (answer, thought.strip(), leaked) == (normalise(text).text, "weigh <it> [", True)


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    "text",
    ["", "\n\n", "<", "<thin", "<b>bold</b>", "[1]", "Here's my name.", "  Hi <think>x</think>", " " * 2 * MOST_HELD],
)
def test_an_answer_without_thoughts_is_as_it_came(text: str, size: int) -> None:
    """Whatever only looks like a marker, and all that stands within the answer, goes out unchanged."""
    assert parted(cut(text, size)) == (text, "", False)


@pytest.mark.parametrize("size", [1, 1000])
def test_several_thoughts_before_the_answer(size: int) -> None:
    """Thoughts that follow each other are all thoughts."""
    text = "<think></think>\n<think>a</think>\n[THINK]b[/THINK] c"
    assert parted(cut(text, size)) == ("c", "ab", True)


def test_a_thought_without_an_end_is_no_answer() -> None:
    """All of it is a thought, also what looked like the beginning of its end."""
    assert parted(["<think>on and", " on </thi"]) == ("", "on and on </thi", True)


def test_an_answer_is_not_held() -> None:
    """The first piece that can be no marker goes out at once, and so does a thought."""
    parting = Parting()
    assert parting.take("Well") == ("Well", "")
    assert Parting().take("<think>Hm") == ("", "Hm")
