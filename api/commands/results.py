"""offload results"""

from __future__ import annotations

import click

from api.commands.output import write_results
from api.use_cases.pool import Pool
from tasks.ledger import reading
from tasks.states import TERMINAL


@click.command()
@click.argument("batch_id", metavar="ID")
@click.option("-o", "--output", metavar="OUT", help="A file instead of stdout.")
@click.option("--state", type=click.Choice(sorted(s.value for s in TERMINAL)), help="Only jobs that ended like this.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of JSONL.")
def results(batch_id: str, output: str | None, state: str | None, as_json: bool) -> None:
    """Print the results of batch ID, in input order; while it runs, those there are."""
    pool = Pool()
    reading.batch(pool.db, batch_id)
    write_results(output, reading.results(pool.db, batch_id, state), as_array=as_json)
