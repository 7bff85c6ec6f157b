"""What the help of a group of commands shows."""

from __future__ import annotations

import click
import pytest

from api.commands import COMMANDS, cli

GROUPS = {
    name: group for name in COMMANDS if isinstance(group := cli.get_command(click.Context(cli), name), click.Group)
}


@pytest.mark.parametrize("name", GROUPS)
def test_no_commands_sentence_is_cut(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However narrow the terminal, each command of a group is told in a whole sentence."""
    monkeypatch.setenv("COLUMNS", "60")
    with click.Context(GROUPS[name], info_name=name) as context:
        told = " ".join(GROUPS[name].get_help(context).partition("Commands:")[2].split())
    assert "..." not in told
    for command in GROUPS[name].commands.values():
        assert command.get_short_help_str(1000) in told
