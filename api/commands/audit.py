"""offload audit list | show | label | report"""

from __future__ import annotations

import getpass
from dataclasses import asdict
from typing import Any

import click
import orjson

from api.commands.output import Group, print_json, print_text, say, table
from api.use_cases.audits import Agreement, report, shown
from api.use_cases.pool import Pool
from tasks.auditing import MOST_REASON, Opinion
from tasks.ledger import audits, reading

#: an audit's number; SQLite keeps no larger one
AuditId = click.IntRange(1, 2**63 - 1)


@click.group(cls=Group)
def audit() -> None:
    """Second opinions on finished jobs: list, show, label, report."""


@audit.command("list")
@click.option("--state", type=click.Choice(["chosen", "asked", "person", "judged"]), help="person: wait for yours.")
@click.option("--batch", metavar="ID", help="Of one batch.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(state: str | None, batch: str | None, limit: int, as_json: bool) -> None:
    """List audits, the newest first."""
    db = Pool().db
    if batch is not None:
        reading.batch(db, batch)
    rows = audits.listed(db, state=state, batch_id=batch, limit=limit)
    if as_json:
        print_json([_row_json(row) for row in rows])
        return
    head = ("audit", "state", "verdict", "auditor", "category", "model", "chance", "batch", "job")
    body = [
        (
            str(r.id), r.state, r.verdict or "-", r.auditor or "-", r.category, r.model, f"{r.probability:g}",
            r.batch_id, r.line_id,
        )
        for r in rows
    ]  # fmt: skip
    click.echo(table(head, body))


def _row_json(row: Any) -> dict[str, Any]:
    names = ("id", "batch_id", "line_id", "category", "model_class", "model", "state", "verdict", "reason", "auditor")
    return {name: getattr(row, name) for name in (*names, "probability", "stratum", "created_at", "judged_at")}


@audit.command()
@click.argument("audit_id", metavar="ID", type=AuditId)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(audit_id: int, as_json: bool) -> None:
    """Print what was asked and answered, for a person to judge."""
    found = shown(Pool().db, audit_id)
    if as_json:
        print_json(asdict(found))
        return
    by = f" by {found.auditor}: {found.reason or 'no reason given'}" if found.auditor else ""
    say(f"audit {found.id}: {found.category} on {found.model}, {found.verdict or found.state}{by}")
    output = found.output if isinstance(found.output, str) else orjson.dumps(found.output).decode()
    for title, text in (("system", found.system), ("request", found.request), ("output", output)):
        if text:
            print_text(f"--- {title}\n{text}")


@audit.command()
@click.argument("audit_id", metavar="ID", type=AuditId)
@click.argument("verdict", type=click.Choice([o.value for o in Opinion]))
@click.option("--reason", default="", metavar="WHY", help="In one sentence.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def label(audit_id: int, verdict: str, reason: str, as_json: bool) -> None:
    """Give a person's VERDICT on audit ID; it counts instead of any given before."""
    if len(reason) > MOST_REASON:
        raise click.UsageError(f"--reason has {MOST_REASON} characters at most")
    who = f"person {getpass.getuser()}"
    audits.judge(Pool().db, audit_id, Opinion(verdict), reason, who, again=True)
    if as_json:
        print_json({"id": audit_id, "verdict": verdict, "auditor": who})
    else:
        say(f"audit {audit_id}: {verdict}, by {who}")


@audit.command("report")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def report_(as_json: bool) -> None:
    """Agreement by category and model with its bounds, and the state of the sequential tests."""
    found = report(Pool().db)
    if as_json:
        print_json(asdict(found))
        return
    if not found.agreements:
        say("nothing was audited yet: one finished local job in a hundred is, and the first of every new kind")
        return
    head = ("category", "model", "agreement, 95 % bounds", "n", "effective n", "unsure", "waiting")
    body = [(a.category, a.model, _share(a), a.n, a.effective_n, a.unsure, a.waiting) for a in found.agreements]
    click.echo(table(head, body))
    head = ("stratum", "category", "class", "audits", "test", "audited", "alarms")
    tests = [
        (t.stratum, t.category, t.model_class, t.audits, f"{t.statistic:.2f} of {t.level:g}",
         "10 times as often" if t.watched else "as usual", t.alarms)
        for t in found.tests
    ]  # fmt: skip
    click.echo("\n" + table(head, tests))
    for alarm in found.alarms:
        where = f"{alarm['category']} on {alarm['model']} (stratum {alarm['stratum']})"
        say(f"ALARM: {where}, after {alarm['audits']} audits")


def _share(a: Agreement) -> str:
    if a.agreement is None or a.low is None or a.high is None:
        return "none judged yet"
    return f"{a.agreement:.1%} ({a.low:.1%} to {a.high:.1%})"
