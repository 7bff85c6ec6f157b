"""offload cancel"""

from __future__ import annotations

import click

from api.commands.output import print_json, say
from api.use_cases.pool import Pool
from tasks.errors import PoolError, UsageError
from tasks.ledger import control, endings, reading, standing
from tasks.states import BatchState


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cancel(batch_id: str, as_json: bool) -> None:
    """Cancel what batch ID still has before it; calls in flight are closed, finished results are kept.

    Batches that depend on it are cancelled, too; its retries are not: they are batches of their own.
    """
    if batch_id.startswith("fan_"):
        raise UsageError(f"{batch_id} is a fan-out: offload fan-out cancel {batch_id}")
    pool = Pool()
    if reading.batch(pool.db, batch_id).state == BatchState.LOADING:
        raise PoolError("the batch is being submitted; interrupt that submit, and nothing of it stays")
    stopped = endings.cancel(pool.db, batch_id)
    control.cancel_dependents(pool.db)
    dependents = control.cancelled_with(pool.db, batch_id)
    row = reading.batch(pool.db, batch_id)
    if as_json:
        print_json({"id": batch_id, "state": row.state, "cancelled": stopped, "dependents": sorted(dependents)})
        return
    say(f"{stopped:,} jobs cancelled; the batch is {row.state}" if stopped else f"the batch is {row.state} already")
    for dependent, jobs in dependents.items():
        say(f"{dependent} depends on it: {jobs:,} jobs cancelled there")
    for retry in standing.retries_of(pool.db, batch_id):
        if retry.open:
            say(f"{retry.id} goes on, which retries lines of it; stop it with: offload cancel {retry.id}")
