"""`--json` is on everything that prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from api.commands import COMMANDS, cli
from tests.support.cli import offload

#: the roles, which print nothing, and what only says how it went, on stderr
SILENT = {"worker", "beat", "api", "flower", "metrics", "simulate"} | {"healthy beat", "healthy url", "healthy worker"}
SILENT |= {"service install", "service uninstall"}


def test_every_command_that_prints_takes_json() -> None:
    """Whichever has no such option is one that prints nothing."""
    context = click.Context(cli)
    found = {name for word in COMMANDS for name in without_json(word, cli.get_command(context, word), context)}
    assert found == SILENT


def without_json(name: str, command: click.Command | None, context: click.Context) -> Iterator[str]:
    if isinstance(command, click.Group):
        for word in command.list_commands(context):
            yield from without_json(f"{name} {word}", command.get_command(context, word), context)
        if not command.invoke_without_command:
            return
    if command is not None and not any("--json" in option.opts for option in command.params):
        yield name


def test_a_revoked_key_is_named(tmp_path: Path) -> None:
    """The name it had, whatever it was called by."""
    environment = {"OFFLOAD_HOME": str(tmp_path)}
    key = offload(environment, "keys", "create", "laptop").text
    assert offload(environment, "keys", "revoke", key, "--json").json == {"revoked": "laptop"}
