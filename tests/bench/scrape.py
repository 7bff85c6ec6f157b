"""What a scrape of /metrics takes on a ledger of many jobs, on both databases.

    python -m tests.bench.scrape [--jobs 200000]

A third of the jobs is done, the others wait in four classes, mixed in each of ten batches; between two scrapes a
thousand calls come.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import click
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import text

from api.exporting.exporter import Exporter
from tasks.config import parse
from tasks.ledger.database import Database
from tasks.ledger.schema import open_ledger
from tasks.settings import Times
from tests.bench.rollup import fill as fill_calls
from tests.support.postgres import Postgres

SCRAPES, CALLS = 20, 1_000
_SERIES = {
    False: "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {n}) SELECT {values} FROM n",
    True: "SELECT {values} FROM generate_series(CAST(1 AS BIGINT), {n}) AS n(i)",
}
_BATCH = (
    "INSERT INTO batches (id, kind, state, priority, created_at, touched_at, opened_at, deadline_at, served_at, total,"
    " open, done, escalated, failed, refused, cancelled, expired)"
    " VALUES (:id, 'jobs', 'open', 0, 1, 1, 1, 9e9, 0, 0, 0, 0, 0, 0, 0, 0, 0)"
)
_COLUMNS = (
    "batch_id, line, line_id, category, model_class, tier, decision, app, state, priority, rank, due_at, queued_at,"
    " fence, in_company, attempts, crashes, crashes_alone, tokens_in, tokens_out"
)
_JOB = (
    "'batch' || (i % 10), i, 'line' || i, 'summarize',"
    " CASE i % 4 WHEN 0 THEN 'small' WHEN 1 THEN 'coder' WHEN 2 THEN 'reason' ELSE 'embed' END, 'lan_ok', 'offload',"
    " '', CASE i % 3 WHEN 0 THEN 'done' ELSE 'queued' END, 0, i, 0, 1000.0 + i, 0, false, 0, 0, 0, 0, 0"
)


def fill(db: Database, n: int) -> None:
    """So many jobs."""
    with db.write(durable=False) as c:
        for i in range(10):
            c.execute(text(_BATCH), {"id": f"batch{i}"})
        c.execute(text(f"INSERT INTO jobs ({_COLUMNS}) {_SERIES[db.is_postgres].format(n=n, values=_JOB)}"))


def measure(name: str, at: str, n: int) -> None:
    """One database's figures."""
    db = open_ledger(at)
    fill(db, n)
    registry = CollectorRegistry()
    collector = Exporter(at, lambda: None, parse("", "the defaults"), Times())
    registry.register(collector)
    generate_latest(registry)
    took, with_calls = [], []
    for i in range(SCRAPES):
        took.append(_scrape(registry))
        fill_calls(db, 500_000 + i, CALLS)
        with_calls.append(_scrape(registry))
    bare, counting = (f"{statistics.median(some) * 1000:.0f} ms ({max(some) * 1000:.0f} at most)"
                      for some in (took, with_calls))  # fmt: skip
    click.echo(f"{name}: {n:,} jobs: a scrape takes {bare}; {counting} with {CALLS:,} new calls")
    collector.close()
    db.close()


def _scrape(registry: CollectorRegistry) -> float:
    began = time.perf_counter()
    assert b"offload_ledger_up 1.0" in generate_latest(registry)
    return time.perf_counter() - began


@click.command()
@click.option("--jobs", default=200_000, show_default=True)
def main(jobs: int) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory(prefix="offload-bench-") as name:
        measure("SQLite", f"sqlite:///{Path(name) / 'ledger.db'}", jobs)
    server = Postgres()
    try:
        measure("PostgreSQL", server.create("bench"), jobs)
    finally:
        server.close()


if __name__ == "__main__":
    main()
