"""How long an hour of a million calls takes to sum, and in how much memory, on both databases.

    python -m tests.bench.rollup [--calls 1000000]

Each hour is summed in a process of its own, so that its peak memory is its own; a tenth of the calls is summed beside
the whole, so that growth shows.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from sqlalchemy import text

from tasks.ledger import rollups
from tasks.ledger.database import Database
from tasks.ledger.schema import open_ledger
from tests.support.postgres import Postgres

#: hours since 1970 that are filled: a tenth of the calls, and all of them
TENTH, WHOLE = 500_000, 500_001
_COLUMNS = (
    "job_id, batch_id, fence, category, model_class, provider, node, model_asked, started_at, duration_ms, load_ms,"
    " first_token_ms, tokens_in, tokens_out, leaked, stale, hour, app, decision, attempt, queue_ms, sent, ended"
)
#: 40 keys; the numbers are spread over several powers of ten
_VALUES = (
    "i, 'batch', 1, 'category' || (i % 5), 'small', 'gpu', 'node' || (i % 4), 'model' || (i % 2), {hour} * 3600.0,"
    " 10.0 + (i * 7919 % 99991), 0.0, 1.0 + (i * 104729 % 9973), i % 900, i % 300, false, i % 97 = 0, {hour},"
    " 'app' || (i % 8), 'offload', 1, 1.0 * (i * 15485863 % 999983), true, 'done'"
)
_SERIES = {
    False: "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {n}) SELECT {values} FROM n",
    True: "SELECT {values} FROM generate_series(CAST(1 AS BIGINT), {n}) AS n(i)",
}


def fill(db: Database, hour: int, n: int) -> None:
    """So many calls in an hour."""
    step = 100_000
    with db.write(durable=False) as c:
        for start in range(0, n, step):
            values = _VALUES.format(hour=hour).replace("i ", f"(i + {start}) ").replace("i,", f"i + {start},", 1)
            series = _SERIES[db.is_postgres].format(n=min(step, n - start), values=values)
            c.execute(text(f"INSERT INTO calls ({_COLUMNS}) {series}"))


def measure(at: str, hour: int) -> None:
    """Sum an hour, and print seconds, MB at most, and keys."""
    db = open_ledger(at)
    began = time.monotonic()
    assert rollups.roll_up(db, hour)
    took, used = time.monotonic() - began, time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    keys = len(rollups.of_hour(db, hour))
    click.echo(f"{took:.1f} s ({used:.1f} s of a core in that process), {peak} MB at most, {keys} keys")
    db.close()


def compare(name: str, at: str, n: int) -> None:
    """One database's figures."""
    db = open_ledger(at)
    for hour, some in ((TENTH, n // 10), (WHOLE, n)):
        fill(db, hour, some)
        command = [sys.executable, "-m", "tests.bench.rollup", "--at", at, "--hour", str(hour)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        click.echo(f"{name}: {some:,} calls in {said}")
    db.close()


@click.command()
@click.option("--calls", default=1_000_000, show_default=True)
@click.option("--at", hidden=True)
@click.option("--hour", hidden=True, type=int)
def main(calls: int, at: str | None, hour: int | None) -> None:
    """Print the figures."""
    if at is not None and hour is not None:
        measure(at, hour)
        return
    with tempfile.TemporaryDirectory(prefix="offload-bench-") as name:
        compare("SQLite", f"sqlite:///{Path(name) / 'ledger.db'}", calls)
    server = Postgres()
    try:
        compare("PostgreSQL", server.create("bench"), calls)
    finally:
        server.close()


if __name__ == "__main__":
    main()
