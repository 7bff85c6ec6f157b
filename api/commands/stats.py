"""offload stats | rollup | prune"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from api.commands.chart import columns
from api.commands.deadlines import span
from api.commands.output import MOST_SECONDS, Number, print_json, say, table
from api.use_cases.pool import Pool
from api.use_cases.stats import DAY, Figures, export, hour_name, jobs_by_hour, live, summary
from scheduler import rollups as service
from tasks.errors import NotFound
from tasks.ledger import rollups
from tasks.rollups import HOUR_S

#: what figures may be kept apart by
BY = ("model", "category", "node", "app")
#: seconds, without --since
LATELY_S = 24 * 3600.0

Cell = Callable[[Mapping[str, Any]], Any]


class Hour(click.ParamType[int]):
    """An hour, UTC, as 2026-04-08T02; hours since 1970."""

    name = "hour"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            at = datetime.strptime(str(value).removesuffix("Z").removesuffix(":00"), "%Y-%m-%dT%H").replace(tzinfo=UTC)
        except ValueError:
            self.fail("is no hour; say it in UTC, as 2026-04-08T02", param, ctx)
        return int(at.timestamp()) // HOUR_S


class Span(click.ParamType[float]):
    """A time that has passed: 90 (seconds), 30m, 24h, 7d."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = span(str(value))
        if found is None or not 0 < found <= MOST_SECONDS:
            self.fail("is no time span: 90 (seconds), 30m, 24h, 7d", param, ctx)
        return found


#: columns that are there even where nothing stands in them
ALWAYS = ("calls", "done", "failed")
#: (heading, what stands under it)
FIGURES: tuple[tuple[str, Cell], ...] = (
    ("calls", lambda row: row["calls"]),
    ("done", lambda row: row["jobs_done"]),
    ("failed", lambda row: row["jobs_failed"]),
    ("escalated", lambda row: row["jobs_escalated"]),
    ("refused", lambda row: row["jobs_refused"]),
    ("tokens in", lambda row: row["tokens_in"]),
    ("tokens out", lambda row: row["tokens_out"]),
    ("wait ms", lambda row: row["wait_p50"]),
    ("first ms", lambda row: row["first_token_p50"]),
    ("median ms", lambda row: row["duration_p50"]),
    ("p95 ms", lambda row: row["duration_p95"]),
    ("agree", lambda row: f"{row['audits_agreed']}/{row['audits']}" if row["audits"] else None),
    ("cost $", lambda row: _money(row["cost_usd"])),
    ("avoided $", lambda row: _money(row["cost_avoided_usd"])),
)


def _money(usd: float) -> str | None:
    return f"{usd:.2f}" if abs(usd) >= 0.005 else f"{usd:.4f}" if usd else None


def _table(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A table without the columns that say nothing."""
    found: list[tuple[str, list[Any]]] = [(name, [row[name] or "-" for row in rows]) for name in names]
    found += [(name, [cell(row) for row in rows]) for name, cell in FIGURES]
    kept = [(name, cells) for name, cells in found if name in ALWAYS or not set(cells) <= {None, 0, "-"}]
    return table([name for name, _ in kept], list(zip(*(cells for _, cells in kept), strict=True)))


@click.command()
@click.option("--hour", type=Hour(), metavar="H", help="One hour, UTC: 2026-04-08T02.")
@click.option("--since", type=Span(), metavar="T", help="The last 90 (seconds), 30m, 24h, 7d; else 24h.")
@click.option("--by", type=click.Choice(BY), default="category", show_default=True, help="Kept apart by.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stats(hour: int | None, since: float | None, by: str, as_json: bool) -> None:
    """Print what the pool did lately, from the calls themselves; the medians are within 1 %."""
    if hour is not None and since is not None:
        raise click.UsageError("--hour and --since are two ways to say when")
    pool = Pool()
    found = live(pool, by, hour=hour, since_s=LATELY_S if since is None else since)
    if as_json:
        print_json({"since": found.since, "until": found.until, "by": by, "rows": found.rows, "total": found.total})
        return
    _print(found)
    if sys.stderr.isatty():
        _chart(pool)


def _print(found: Figures) -> None:
    if not found.rows:
        say("nothing was done in that time")
        return
    total = [{found.by: "all", **found.total}] if len(found.rows) > 1 else []
    click.echo(_table([found.by], [*found.rows, *total]))


def _chart(pool: Pool) -> None:
    """A day's throughput, for whoever watches."""
    last, jobs = jobs_by_hour(pool)
    if not any(jobs):
        return
    say(f"\njobs an hour, at most {max(jobs):,}; the last of {DAY} hours is {hour_name(last)} (UTC)")
    for line in columns(jobs):
        say(line)
    first = last - DAY + 1
    say(" ".join(f"{(first + i) % 24:02}" for i in range(DAY)))


@click.command()
@click.option("--hour", type=Hour(), metavar="H", help="Show this hour, UTC: 2026-04-08T02; else the newest.")
@click.option(
    "--export", "where", metavar="FILE|URL", help="Write its summary to a JSON file, or POST it to a webhook."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rollup(hour: int | None, where: str | None, as_json: bool) -> None:
    """Sum every hour that is due, as beat does at five past, and print one hour's sums."""
    pool = Pool()
    service.run_once(pool.db, pool.settings)
    shown = rollups.newest_hour(pool.db) if hour is None else hour
    if shown is None:
        raise NotFound("nothing was done yet: there is no hour to show")
    document = summary(pool, shown)
    if where is not None:
        key = export(where, document)
        say(f"exported: {key}")
    if as_json:
        print_json(document)
        return
    if not document["rows"]:
        say(f"nothing was done in {document['hour']} (UTC)")
        return
    say(f"hour {document['hour']} (UTC)")
    names = ("category", "model", "node", "app", "decision")
    click.echo(_table(names, document["rows"]))


@click.command()
@click.option("--days", type=Number(min=0, min_open=True, max=36_500), metavar="N", help="Else retention.calls_days.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def prune(days: float | None, as_json: bool) -> None:
    """Delete the calls of whole hours that are N days old; their rollups stay and are closed."""
    pool = Pool()
    kept = pool.registry.retention.calls_days if days is None else days
    counts = rollups.prune(pool.db, kept)
    if as_json:
        print_json(counts | {"days": kept})
    else:
        say(f"{counts['calls']:,} calls of {kept:g} days ago and more deleted, {counts['hours']:,} hours closed")
