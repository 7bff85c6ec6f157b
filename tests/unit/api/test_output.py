"""What commands print."""

from __future__ import annotations

import pytest

from api.commands.output import print_text, say, table

#: clears a screen, names a window, turns a line around, is half a character
COMMANDS = "a\x1b[2J\x1b]0;b\x07\x9b\u202ec\ud800"
SHOWN = "a?[2J?]0;b???c?"


def test_names_in_a_table() -> None:
    """A name tells a terminal nothing, and takes one line."""
    assert table(("name", "jobs"), [(COMMANDS, 3), ("x\ny\tz", 4)]) == (
        f"name             jobs\n{SHOWN}     3\nx?y?z               4"
    )


def test_names_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """The same holds for lines, whose ends and tabs stay."""
    say(f"{COMMANDS}\n\té")
    print_text(f"{COMMANDS}\n\té")
    assert capsys.readouterr() == (f"{SHOWN}\n\té\n",) * 2
