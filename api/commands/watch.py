"""offload wait, offload status, offload batches"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from api.commands.output import Seconds, print_json, print_text, say, seconds, show_progress, table
from api.commands.submit import exit_code
from api.embedded.state import read_pool
from api.interrupts import GoingOn
from api.use_cases.outlook import Outlook, outlook
from api.use_cases.pool import Pool
from api.use_cases.watching import counts, is_running, live_workers, now, watch
from tasks.ledger import audits, reading, standing, ticks
from tasks.states import ANSWERED, TERMINAL, BatchState, JobState


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("--timeout", type=Seconds(), metavar="S", help="Exit 4 after so many seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON at the end.")
def wait(batch_id: str, timeout: float | None, as_json: bool) -> None:
    """Wait until batch ID is over; exit 6 when some of its jobs were not done."""
    pool = Pool()
    with GoingOn(batch_id):
        last = show_progress(watch(pool, batch_id, timeout))
    if as_json:
        print_json({"id": batch_id, "state": last.state, "total": last.total, **last.counts})
    sys.exit(exit_code(last))


@click.command()
@click.argument("batch_id", metavar="[ID]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(batch_id: str | None, as_json: bool) -> None:
    """Show batch ID: how far it is, by category, and why its jobs wait. Without ID: the pool."""
    pool = Pool()
    if batch_id is None:
        _pool_status(pool, as_json)
    else:
        _batch_status(pool, batch_id, as_json)


@click.command()
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@click.option("--all", "all_", is_flag=True, help="The pool's own too: audits, merges.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def batches(limit: int, all_: bool, as_json: bool) -> None:
    """List batches, the newest first."""
    pool = Pool()
    rows = reading.recent_batches(pool.db, limit, own_too=all_)
    waits = standing.waits_for(pool.db, [row.id for row in rows if row.state == BatchState.OPEN])
    needs = {batch_id: [needed.id for needed in found] for batch_id, found in waits.items()}
    if as_json:
        print_json([_batch_json(row) | {"waits_for": needs.get(row.id, [])} for row in rows])
        return
    at = now(pool)
    head = ("id", "state", "jobs", "done", "not done", "age", "name", "")
    body = [
        (
            r.id, r.state, r.total, r.done + r.escalated, _not_done(r), seconds(at - r.created_at), r.name or "",
            "; ".join(_notes(r, needs.get(r.id, []))),
        )
        for r in rows
    ]  # fmt: skip
    click.echo(table(head, body))


def _notes(row: Any, needs: list[str]) -> Iterator[str]:
    """What is special about a batch."""
    if row.state == BatchState.OPEN and row.paused_at is not None:
        yield "paused"
    if needs:
        yield f"waits for {', '.join(needs)}"
    if row.retry_of is not None:
        yield f"retries {row.retry_of}"


def _not_done(row: Any) -> int:
    return sum(n for state, n in counts(row).items() if state not in ANSWERED)


def _batch_json(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "state": row.state,
        "priority": row.priority,
        "paused_at": row.paused_at if row.state == BatchState.OPEN else None,
        "retry_of": row.retry_of,
        "total": row.total,
        **counts(row),
        "created_at": row.created_at,
        "finished_at": row.finished_at,
        "deadline_at": row.deadline_at,
    }


def _batch_status(pool: Pool, batch_id: str, as_json: bool) -> None:
    row = reading.batch(pool.db, batch_id)
    categories = reading.by_category(pool.db, batch_id)
    ahead = outlook(pool, row) if row.state == BatchState.OPEN else None
    retries = standing.retries_of(pool.db, batch_id)
    audited = audits.counted(pool.db, batch_id)
    ended = sum(counts(row).values())
    took = (row.finished_at or now(pool)) - (row.opened_at or row.created_at)
    rate = ahead.rate if ahead else ended / took if took > 0 else 0.0
    if as_json:
        more = {"took_s": took, "rate": rate, "audits": audited, **_outlook_json(ahead)}
        more["retries"] = [{"id": r.id, "state": r.state, "total": r.total, "open": r.open} for r in retries]
        print_json(_batch_json(row) | more | {"categories": [asdict(c) for c in categories]})
        return
    state = f"{row.state}, paused" if ahead and row.paused_at is not None else row.state
    left = f", {_left(row, ahead, now(pool))}" if ahead else ""
    print_text(f"{row.id}  {state}  {ended:,} of {row.total:,} in {seconds(took)}, {rate:,.1f} jobs/s{left}")
    click.echo(category_table(categories))
    for line in (*_outlook_lines(ahead), *_retry_lines(row, retries)):
        print_text(line)
    if row.escalated or row.refused:
        print_text(f"escalated to the cloud: {row.escalated:,}; refused: {row.refused:,}")
    if audited:
        print_text(f"audits: {_audit_words(audited)}")


def _outlook_json(ahead: Outlook | None) -> dict[str, Any]:
    if ahead is None:
        return {"left_s": None, "left_unknown": None, "position": None, "waits_for": [], "waiting": {}}
    return {
        "left_s": ahead.left_s,
        "left_unknown": ahead.why,
        "position": asdict(ahead.place),
        "waits_for": list(ahead.needs),
        "waiting": ahead.waiting,
    }


def _left(row: Any, ahead: Outlook, at: float) -> str:
    """The time left, or why it is unknown; and where the deadline comes first."""
    if ahead.left_s is None:
        return f"time left unknown: {ahead.why}"
    to_deadline = max(0.0, row.deadline_at - at)
    late = f" (its deadline comes first, in {seconds(to_deadline)})" if ahead.left_s > to_deadline else ""
    return f"{seconds(ahead.left_s)} left{late}"


def _outlook_lines(ahead: Outlook | None) -> Iterator[str]:
    if ahead is None:
        return
    for name, reason in ahead.waiting.items():
        if reason != ahead.why:
            yield f"class {name}: {reason}"
    for name, jobs in ahead.needs.items():
        yield f"waits for {name}, which has {_jobs(jobs)} open"
    at = ahead.place
    if at.batches_ahead:
        yield f"ahead of it: {_jobs(at.jobs_ahead)} of {_batches(at.batches_ahead)}"
    if at.batches_beside:
        yield f"takes turns with {_jobs(at.jobs_beside)} of {_batches(at.batches_beside)}"


def _retry_lines(row: Any, retries: list[Any]) -> Iterator[str]:
    if row.retry_of is not None:
        yield f"retries lines of {row.retry_of}"
    for retry in retries:
        how = f"{_jobs(retry.open)} open" if retry.open else f"{retry.state}, {retry.done + retry.escalated:,} done"
        yield f"{retry.id} retries {retry.total:,} of its lines: {how}"


def _jobs(n: int) -> str:
    return f"{n:,} job{'s' * (n != 1)}"


def _batches(n: int) -> str:
    return f"{n:,} batch{'es' * (n != 1)}"


def _audit_words(counted: dict[str, int]) -> str:
    """Audits by verdict, or by what they wait for."""
    words = {"chosen": "to be asked", "person": "wait for a person"}
    return ", ".join(f"{n:,} {words.get(what, what)}" for what, n in sorted(counted.items()))


def category_table(categories: list[reading.CategorySummary]) -> str:
    """What became of each category."""
    head = ("category", "done", "failed", "other", "open", "tokens in", "tokens out", "median ms", "p95 ms")
    return table(
        head,
        [
            (
                c.category,
                sum(n for s, n in c.states.items() if s in ANSWERED),
                c.states.get(JobState.FAILED, 0),
                sum(n for s, n in c.states.items() if s in TERMINAL - ANSWERED - {JobState.FAILED}),
                sum(n for s, n in c.states.items() if s not in TERMINAL),
                c.tokens_in,
                c.tokens_out,
                c.median_ms,
                c.p95_ms,
            )
            for c in categories
        ],
    )


def _pool_status(pool: Pool, as_json: bool) -> None:
    workers = live_workers(pool, reading.all_workers(pool.db))
    open_ = reading.open_batches(pool.db)
    running = is_running(pool)
    api = read_pool(pool.settings).get("api", "") if running else ""
    if as_json:
        rows = [
            {"name": w.name, "classes": w.classes, "in_flight": w.in_flight, "capacity": w.capacity, "health": w.health}
            for w in workers
        ]
        found = {"running": running, "workers": rows, "open_batches": [_batch_json(r) for r in open_]}
        found |= {"trouble": ticks.broker_trouble(pool.db), "api": api}
        print_json(found | {"audits": audits.counted(pool.db), "alarms": len(audits.alarms(pool.db))})
        return
    if not running:
        say("the pool is not running: offload up")
    if running and (trouble := ticks.broker_trouble(pool.db)):
        say(f"{trouble}; jobs wait meanwhile")
    if api:
        print_text(f"API: {api}/v1")
    head = ("worker", "health", "in flight", "of", "classes")
    click.echo(table(head, [(w.name, w.health, w.in_flight, w.capacity, ", ".join(w.classes)) for w in workers]))
    waiting = sum(r.open for r in open_)
    print_text(f"jobs open: {waiting:,}, batches open: {len(open_):,}")
    if audited := audits.counted(pool.db):
        print_text(f"audits: {_audit_words(audited)}; offload audit report")
    if alarms := audits.alarms(pool.db):
        print_text(f"audit alarms: {len(alarms)}")
