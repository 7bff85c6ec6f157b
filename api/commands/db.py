"""offload db"""

from __future__ import annotations

import click

from api.commands.output import Group, print_json, say
from tasks.ledger import schema
from tasks.settings import load_settings


@click.group(cls=Group)
def db() -> None:
    """The ledger's tables: which version they are of, and bringing them to this one."""


@db.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def upgrade(as_json: bool) -> None:
    """Bring the ledger's tables to this version, or make them; refused while workers or beat run on older ones."""
    settings = load_settings()
    before, after = schema.upgrade(settings.ledger(), settings.times)
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        say(f"the tables are those of this version already ({after})")
    else:
        say(f"the tables are of this version now ({after})" + (f", before: {before}" if before else ""))
