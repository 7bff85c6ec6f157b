"""offload cancel"""

from __future__ import annotations

import click

from api.commands.output import print_json, say
from api.use_cases.pool import Pool
from tasks.errors import PoolError
from tasks.ledger import endings, reading
from tasks.states import BatchState


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cancel(batch_id: str, as_json: bool) -> None:
    """Cancel what batch ID still has before it; calls in flight are closed, finished results are kept."""
    pool = Pool()
    if reading.batch(pool.db, batch_id).state == BatchState.LOADING:
        raise PoolError("the batch is being submitted; interrupt that submit, and nothing of it stays")
    stopped = endings.cancel(pool.db, batch_id)
    row = reading.batch(pool.db, batch_id)
    if as_json:
        print_json({"id": batch_id, "state": row.state, "cancelled": stopped})
    else:
        say(f"{stopped:,} jobs cancelled; the batch is {row.state}" if stopped else f"the batch is {row.state} already")
