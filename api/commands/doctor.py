"""offload doctor"""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from api.commands.output import print_json, say
from api.use_cases.doctor import examine
from api.use_cases.pool import Pool


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Check everything; exit 1 when something is broken, with the command that mends it."""
    findings = examine(Pool())
    if as_json:
        print_json([asdict(f) for f in findings])
    else:
        for f in findings:
            click.echo(
                f"{'ok    ' if f.ok else 'BROKEN'}  {f.check}: {f.detail}"
                + (f"\n        fix: {f.fix}" if f.fix else "")
            )
    broken = sum(not f.ok for f in findings)
    if broken:
        say(f"{broken} broken")
    sys.exit(1 if broken else 0)
