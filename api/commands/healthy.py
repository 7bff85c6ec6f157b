"""offload healthy"""

from __future__ import annotations

import sys

import click

from api.commands.output import Group, say
from api.use_cases.healthy import beat_trouble, page_trouble, worker_trouble
from api.use_cases.pool import Pool


@click.group(cls=Group)
def healthy() -> None:
    """Whether one role is well: exit 0 and nothing said, or 1 and what is wrong. For containers' health checks."""


@healthy.command()
@click.option("--provider", required=True, metavar="P", help="The worker's provider.")
@click.option("--node", metavar="NAME", help="Its node; default: OFFLOAD_NODE, the host's name.")
def worker(provider: str, node: str | None) -> None:
    """A worker, by its heartbeat in the ledger."""
    pool = Pool()
    _end(worker_trouble(pool, provider, node or pool.settings.node))


@healthy.command()
def beat() -> None:
    """Beat, by its last sweep."""
    _end(beat_trouble(Pool()))


@healthy.command()
@click.argument("address")
def url(address: str) -> None:
    """Flower, the exporter, or whatever else answers at a URL."""
    _end(page_trouble(address))


def _end(trouble: str) -> None:
    if trouble:
        say(trouble)
    sys.exit(1 if trouble else 0)
