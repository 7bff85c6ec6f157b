"""offload pause, offload resume, offload retry"""

from __future__ import annotations

import click

from api.commands.deadlines import Deadline
from api.commands.output import print_json, say
from api.commands.submit import PRIORITY, dispatch_now
from api.use_cases import control
from api.use_cases.pool import Pool
from api.use_cases.submitting import When
from tasks.ledger import reading
from tasks.states import JobState


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def pause(batch_id: str, as_json: bool) -> None:
    """Send nothing more of batch ID to the workers until it is resumed; what runs finishes, its deadline goes on."""
    found = control.pause(Pool(), batch_id)
    if as_json:
        print_json({"id": batch_id, "running": found.running, "queued": found.queued})
        return
    say(
        f"paused: {found.queued:,} jobs wait, {found.running:,} run to their end; go on with: offload resume {batch_id}"
    )


@click.command()
@click.argument("what", metavar="ID|NODE")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def resume(what: str, as_json: bool) -> None:
    """Go on with a paused batch, or let a drained NODE serve again."""
    pool = Pool()
    is_batch = control.resume(pool, what)
    if is_batch:
        dispatch_now(pool)
    if as_json:
        print_json({"id": what, "kind": "batch" if is_batch else "node"})
    elif is_batch:
        say(f"{what} goes on")
    else:
        say(f"{what} serves as soon as it can; look with: offload nodes")


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("--failed", is_flag=True, help="Only the lines that failed.")
@click.option("--cancelled", is_flag=True, help="Only the lines that were cancelled.")
@click.option("--priority", type=PRIORITY, metavar="N", help="Higher is served first; that of ID unless said.")
@click.option("--deadline", type=Deadline(), metavar="WHEN", help="Jobs not done by then expire: 30m, 2h, 18:30 (24h).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def retry(
    batch_id: str, failed: bool, cancelled: bool, priority: int | None, deadline: When | None, as_json: bool
) -> None:
    """Submit the lines of batch ID that failed, expired or were cancelled again; print the new batch's id.

    They go where they went before and no further. `results ID` follows: of each line it prints the newest answer.
    """
    only = [state for state, wanted in ((JobState.FAILED, failed), (JobState.CANCELLED, cancelled)) if wanted]
    pool = Pool()
    again = control.retry(pool, batch_id, only, priority, deadline)
    jobs = reading.batch(pool.db, again).total
    if as_json:
        print_json({"id": again, "retry_of": batch_id, "jobs": jobs})
    else:
        say(f"{jobs:,} lines of {batch_id} again; `offload results {batch_id}` follows")
        click.echo(again)
    dispatch_now(pool)
