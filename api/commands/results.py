"""offload results"""

from __future__ import annotations

import click

from api.commands.output import result_file
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
    before, between, after = (b"[\n", b",\n", b"\n]\n") if as_json else (b"", b"\n", b"\n")
    with result_file(output) as out:
        out.write(before)
        empty = True
        for line in reading.results(pool.db, batch_id, state):
            out.write(line if empty else between + line)
            empty = False
        out.write(after if as_json or not empty else b"")
