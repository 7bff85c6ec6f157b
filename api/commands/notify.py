"""offload notify test | list"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

import click

from api.commands.output import Group, print_json, print_text, say, table
from api.use_cases.pool import Pool
from scheduler.receivers import deliver, receivers
from tasks.config import load_registry
from tasks.errors import ConfigError
from tasks.ledger import notices
from tasks.notices import Kind, News, text
from tasks.settings import load_settings


@click.group(cls=Group)
def notify() -> None:
    """Tell people what happens: try the receivers, list what they were told."""


@notify.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def test(as_json: bool) -> None:
    """Send a test to every receiver now; print what each answered. Exit 1 where one did not take it."""
    registry = load_registry(load_settings())
    there = receivers(registry.notify)
    if not there:
        raise ConfigError(f"nobody is told: name a variable under notify.webhook_env ({registry.source})")
    answers = [(receiver, deliver(receiver, text(News(Kind.TEST, "")))) for receiver in there]
    if as_json:
        rows = [{"receiver": r.name, "host": r.host, "ok": a.ok, "answer": a.words, "said": a.said} for r, a in answers]
        print_json(rows)
    else:
        for receiver, answer in answers:
            said = f" ({answer.said})" if answer.said else ""
            host = f" at {receiver.host}" if receiver.host else ""
            print_text(f"{'ok    ' if answer.ok else 'FAILED'}  {receiver.name}{host}: {answer.words}{said}")
    sys.exit(0 if all(answer.ok for _, answer in answers) else 1)


@notify.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(limit: int, as_json: bool) -> None:
    """List notices, the newest first."""
    pool = Pool()
    rows = notices.listed(pool.db, limit)
    if as_json:
        print_json([dict(row._mapping) | {"text": _text(row)} for row in rows])
        return
    if not rows:
        told = "there was nothing to tell yet" if pool.registry.notify.receivers else "nobody is told: see notify in"
        say(told if pool.registry.notify.receivers else f"{told} {pool.registry.source}")
        return
    head = ("time (UTC)", "state", "receiver", "tries", "answer", "text")
    body = [(_when(row.last_at), row.state, row.receiver, row.tries, row.answer or "-", _text(row)) for row in rows]
    click.echo(table(head, body))


def _text(row: Any) -> str:
    return text(News(row.kind, row.subject, row.detail, row.times, row.first_at, row.last_at))


def _when(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%m-%d %H:%M:%S}"
