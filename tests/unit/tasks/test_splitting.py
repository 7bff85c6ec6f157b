"""Long texts come apart where a reader would cut them, and together again as they were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.splitting import LEAST, split

TEXTS = st.text(st.sampled_from("ab \t\n\r#äß漢🙂") | st.characters(exclude_categories=["Cs"]), max_size=400)
CODE = "import os\n\n\ndef one():\n    a = 1\n\n    return a\n\n\ndef two():\n    return 2\n"


@given(TEXTS, st.integers(LEAST, 200))
def test_pieces_put_together_again_are_the_text(text: str, most: int) -> None:
    """Whatever the text and the size, nothing is lost, doubled or too long, and no character is cut in two."""
    pieces = split(text, most)
    assert "".join(pieces) == text
    assert all(len(piece.encode()) <= most for piece in pieces)
    assert all(pieces) or pieces == [""]


@given(TEXTS, st.integers(20, 200))
def test_there_are_few_pieces(text: str, most: int) -> None:
    """A cut is made in the second half of what fits, so that a text is never in more than about twice the pieces."""
    assert len(split(text, most)) <= 2 * len(text.encode()) // (most - LEAST) + 1


@pytest.mark.parametrize(
    ("text", "most", "first"),
    [
        (CODE, len(CODE) - 5, CODE[: CODE.index("def two")]),
        ("a = 1\n\n    b = 2\n\n    c = 3\n", 24, "a = 1\n\n    b = 2\n\n"),
        ("some words here\n# Head\nmore words\n", 25, "some words here\n"),
        ("one line\ntwo lines\nthree\n", 22, "one line\ntwo lines\n"),
        ("some words in a row", 12, "some words "),
        ("unbroken", 5, "unbro"),
        ("äääää", 5, "ää"),
    ],
    ids=["functions", "blank lines", "headings", "lines", "words", "characters", "long characters"],
)
def test_the_best_boundary_is_taken(text: str, most: int, first: str) -> None:
    """Before a function or a paragraph, else at a blank line, a heading, a line, a word, a character."""
    assert split(text, most)[0] == first


def test_a_piece_holds_the_longest_character() -> None:
    """No smaller size is taken: the text would have no end."""
    with pytest.raises(ValueError, match="room for 4 bytes"):
        split("🙂", 3)
