"""offload doctor"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict

import click

from api.commands.output import print_json, print_text, say
from api.use_cases.doctor import Finding, examine
from api.use_cases.pool import Pool

#: seconds between two words on how far a long look is
SAY_S = 1.0


@click.command()
@click.option("--deep", is_flag=True, help="Also look whether all rows of the ledger agree with each other.")
@click.option("--fix", is_flag=True, help="With --deep: mend what can be mended safely.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(deep: bool, fix: bool, as_json: bool) -> None:
    """Check everything; exit 1 when something is broken, with the command that mends it."""
    if fix and not deep:
        raise click.UsageError("--fix goes with --deep")
    pool = Pool()
    findings = examine(pool)
    if deep and all(f.ok for f in findings if f.check in ("configuration", "ledger")):
        findings += _deep(pool, fix)
    if as_json:
        print_json([asdict(f) for f in findings])
    else:
        for f in findings:
            print_text(
                f"{'ok    ' if f.ok else 'BROKEN'}  {f.check}: {f.detail}"
                + (f"\n        fix: {f.fix}" if f.fix else "")
            )
    broken = sum(not f.ok for f in findings)
    if broken:
        say(f"{broken} broken")
    sys.exit(1 if broken else 0)


def _deep(pool: Pool, fix: bool) -> Iterator[Finding]:
    from api.use_cases.deep import examine_deep

    said_at = time.monotonic()

    def show(what: str, looked: int, of: int) -> None:
        nonlocal said_at
        if time.monotonic() - said_at > SAY_S:
            said_at = time.monotonic()
            say(f"looked at {looked:,} {what}" + (f" of {of:,}" if of != looked else ""))

    yield from examine_deep(pool, show, fix=fix)
