"""offload metrics: the role that tells Prometheus"""

from __future__ import annotations

import click

from api.embedded.ports import METRICS_PORT
from api.logs import role_logs
from tasks.config import load_registry
from tasks.settings import load_settings


@click.command()
@click.option("--address", default="127.0.0.1", show_default=True, metavar="HOST", help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65_535), default=METRICS_PORT, show_default=True, help="0: a free one.")
def metrics(address: str, port: int) -> None:
    """Serve /metrics for Prometheus, and /healthz, until Ctrl-C."""
    from api.exporting.server import serve

    settings = load_settings()
    with role_logs(settings):
        serve(settings, load_registry(settings), address, port)
