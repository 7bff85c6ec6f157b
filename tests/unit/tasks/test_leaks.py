"""Thoughts never stay in an answer, and answers never lose what is theirs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import BadOutput
from tasks.leaks import normalise

#: how each family wraps a thought, before the answer
FAMILIES = {
    "think": ("<think>", "</think>"),
    "kimi": ("◁think▷", "◁/think▷"),
    "mistral": ("[THINK]", "[/THINK]"),
    "gpt-oss": ("<|channel|>analysis<|message|>", "<|end|>"),
    "gpt-oss final": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "gemma": ("<|channel>thought\n", "<channel|>"),
    "granite": ("Here's my thought process:", "Here's my response:"),
}
MARKERS = (*(marker for pair in FAMILIES.values() for marker in pair), "<|return|>", "<|start|>assistant")
#: text in which no marker can hide: none of the characters that every marker has one of
PLAIN = st.text(st.characters(exclude_characters="<>▷◁[]:|", exclude_categories=["Cs"]))
SECRET = "zq9 the hidden thought zq9"


def _rot(pieces: list[str]) -> str:
    return "".join(pieces)


@pytest.mark.parametrize(("opener", "closer"), FAMILIES.values(), ids=FAMILIES)
def test_every_family_is_taken_out(opener: str, closer: str) -> None:
    """A thought before the answer becomes reasoning, whatever family's markers it wears."""
    answer = normalise(f"{opener} weigh it \n{closer}\n\nthe answer\n")
    assert (answer.text, answer.reasoning, answer.leaked) == ("the answer", "weigh it", True)


@pytest.mark.parametrize(("opener", "closer"), FAMILIES.values(), ids=FAMILIES)
def test_an_unclosed_thought_is_truncated(opener: str, closer: str) -> None:
    """An opener without a closer fails the answer as truncated_thinking."""
    with pytest.raises(BadOutput) as caught:
        normalise(f"{opener} weigh it and never end")
    assert caught.value.code == "truncated_thinking"
    assert "weigh" not in str(caught.value)


@pytest.mark.parametrize("closer", ["</think>", "◁/think▷", "[/THINK]", "<|end|>", "<channel|>"])
def test_a_lone_closer_drops_all_before_it(closer: str) -> None:
    """A closer without an opener takes everything before it with it."""
    answer = normalise(f"leaked thoughts\n{closer}\nbug")
    assert (answer.text, answer.reasoning) == ("bug", "leaked thoughts")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<think>a</think>one <think>b</think>two", "one two"),
        ("first <think>x<think>y</think>z</think>last", "first last"),
        ("<think>the <think> tag is odd</think>bug", "bug"),
        ("<think>say `</think>` first. ok</think>bug", "bug"),
        ("<think>```py\nunclosed code</think>\n```py\nx = 1\n```", "```py\nx = 1\n```"),
        ("<think></think>\n\nbug", "bug"),
        ("<|channel>thought\n<channel|>bug", "bug"),
        ("<thi<think>x</think>nk>y</think>bug", "bug"),
        ("<think>a</think>Here's my thought process: b\nHere's my response:\nbug", "bug"),
        ("**Here is my thought process:** b\n\n**Here is my response:**\nbug", "bug"),
        ("Here's my response:\nbug", "bug"),
        ("bug<|return|>", "bug"),
        ("bug<|end|>\n", "bug"),
        ("<|channel|>final<|message|>bug<|return|>", "bug"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|>"
            "<|start|>assistant<|channel|>final<|message|>bug<|return|>",
            "bug",
        ),
        ("<|channel|>analysis<|message|>no end<|start|>assistant<|channel|>final<|message|>bug", "bug"),
    ],
)
def test_odd_shapes(text: str, kept: str) -> None:
    """Several, nested, empty, mixed and badly nested thoughts all leave just the answer."""
    assert normalise(text).text == kept


@pytest.mark.parametrize(
    "text",
    [
        "```html\n<think>shown</think>\n```",
        "```\n</think>\n```\nends a thought",
        "  ~~~~\n[THINK]\n~~~~\n",
        "DeepSeek writes `<think>` and `</think>` around it",
        "``<think> `x` ``",
        "My notes: Here's my thought process: none. Here's my response: none.",
        "```a``` then `<|end|>` is a token",
        "a thinking> arrow, THINK] hard",
    ],
)
def test_markers_in_code_are_text(text: str) -> None:
    """Markers inside closed fences or inline code, and headings away from the start, are left alone."""
    answer = normalise(text)
    assert (answer.text, answer.leaked) == (text, False)


def test_code_and_thought_side_by_side() -> None:
    """A thought before a fence goes; the same markers within the fence stay."""
    answer = normalise("<think>a</think>\n```\n<think>b</think>\n```")
    assert (answer.text, answer.reasoning) == ("```\n<think>b</think>\n```", "a")


def test_the_servers_reasoning_comes_first() -> None:
    """What the server told apart is kept, and leaked thoughts follow it."""
    assert normalise("<think>b</think>c", "a").reasoning == "a\n\nb"
    assert normalise("", "the whole answer").text == ""


@given(PLAIN, st.text())
def test_text_without_markers_is_unchanged(text: str, reasoning: str) -> None:
    """Text without markers comes back as it is, blanks included."""
    answer = normalise(text, reasoning)
    assert (answer.text, answer.reasoning, answer.leaked) == (text, reasoning, False)


@given(st.lists(st.one_of(st.sampled_from(MARKERS), st.sampled_from(["`", "```", "\n", " ", "x"]), PLAIN)).map(_rot))
def test_normalising_twice_changes_nothing(text: str) -> None:
    """An answer once normalised has nothing more to take out, whatever soup it came from."""
    try:
        once = normalise(text)
    except BadOutput:
        return
    assert normalise(once.text).text == once.text
    assert not normalise(once.text).leaked


@given(
    st.sampled_from(sorted(FAMILIES)),
    st.lists(st.sampled_from(["`", "```", "```py", "~~~", "\n", " ", "x", '{"a": 1}'])).map(_rot),
    st.text(st.characters(exclude_characters="<>▷◁[]:|`~", exclude_categories=["Cs"])),
    PLAIN,
)
def test_a_wrapped_thought_never_survives(family: str, mess: str, before: str, after: str) -> None:
    """No thought is left in the answer, whatever code it holds and whatever stands around it."""
    opener, closer = FAMILIES[family]
    if family == "granite":
        before = ""
    answer = normalise(f"{before}{opener}{mess}{SECRET}{mess}{closer}{after}")
    assert "zq9" not in answer.text
    assert SECRET in answer.reasoning


@pytest.mark.slow
def test_hostile_repetition_stays_quick() -> None:
    """A megabyte of unmatched markers and fences costs a moment, not minutes."""
    for text in ("(<think><think></think>)" * 40_000, "```py\n" * 150_000 + "</think>", "<|end|>" * 100_000):
        normalise(text)
