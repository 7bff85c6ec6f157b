"""offload keys"""

from __future__ import annotations

from datetime import UTC, datetime

import click

from api.commands.output import Group, print_json, say, table
from api.use_cases.pool import Pool
from tasks.ledger import api_keys
from tasks.ledger.api_keys import Scope
from tasks.privacy import Tier


@click.group(cls=Group)
def keys() -> None:
    """Keys of the HTTP API. Once there is one, nobody gets in without."""


@keys.command()
@click.argument("name")
@click.option(
    "--scope", "scopes", type=click.Choice(list(map(str, Scope))), multiple=True, help="Else submit and read."
)
@click.option("--most-queued", type=click.IntRange(1), metavar="N", help="Unfinished jobs it may have.")
@click.option("--per-minute", type=click.IntRange(1), metavar="N", help="Requests a minute.")
@click.option("--privacy", type=click.Choice(list(map(str, Tier))), help="The tier its jobs have at most.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def create(
    name: str,
    scopes: tuple[str, ...],
    most_queued: int | None,
    per_minute: int | None,
    privacy: str | None,
    as_json: bool,
) -> None:
    """Make a key called NAME and print it. It is shown this once."""
    if not name.strip() or len(name) > 64 or not name.isprintable():
        raise click.UsageError("NAME has 1 to 64 printable characters")
    key = api_keys.make(
        Pool().db,
        name,
        [Scope(s) for s in scopes] or [Scope.SUBMIT, Scope.READ],
        most_queued=most_queued,
        per_minute=per_minute,
        ceiling=Tier(privacy) if privacy else None,
    )
    if as_json:
        print_json({"name": name, "key": key})
        return
    click.echo(key)
    say("keep it: only a hash of it stays here")


@keys.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the keys there were."""
    rows = api_keys.everyone(Pool().db)
    if as_json:
        kept = ("id", "name", "prefix", "scopes", "created_at", "revoked_at", "most_queued", "per_minute", "ceiling")
        print_json([{field: getattr(row, field) for field in kept} for row in rows])
        return
    cells = [
        (r.name, f"{r.prefix}…", ", ".join(r.scopes), _limits(r), *map(_day, (r.created_at, r.revoked_at)))
        for r in rows
    ]
    click.echo(table(("name", "key", "scopes", "limits", "made", "revoked"), cells))


@keys.command()
@click.argument("which", metavar="NAME")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def revoke(which: str, as_json: bool) -> None:
    """Revoke the key called NAME, or with that id or those first characters; it works for some seconds more."""
    name = api_keys.revoke(Pool().db, which)
    if as_json:
        print_json({"revoked": name})
    else:
        say(f"{name} is revoked")


def _limits(row: object) -> str:
    words = (("most_queued", "{} queued"), ("per_minute", "{} a minute"), ("ceiling", "{}"))
    return ", ".join(form.format(value) for name, form in words if (value := getattr(row, name)) is not None)


def _day(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
