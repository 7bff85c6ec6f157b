"""offload worker, beat, api, flower, simulate: the roles one by one, in the foreground"""

from __future__ import annotations

import re

import click

from api.embedded.ports import API_PORT, FLOWER_PORT
from api.logs import role_logs
from tasks.config import load_registry
from tasks.settings import NODE, load_settings


def _node(context: click.Context, option: click.Parameter, name: str | None) -> str | None:
    if name is not None and not re.fullmatch(NODE, name):
        raise click.BadParameter("letters, digits, dots, dashes and underscores, 63 at most")
    return name


@click.command()
@click.option("--node", metavar="NAME", callback=_node, help="This machine's name; default: OFFLOAD_NODE, the host's.")
@click.option("--provider", required=True, metavar="P", help="A provider of offload.yaml.")
@click.option("--serves", metavar="C,C", help="Only these of its classes.")
@click.option("--allow-cloud-key", is_flag=True, help="Start although a cloud's key is in the environment.")
def worker(node: str | None, provider: str, serves: str | None, allow_cloud_key: bool) -> None:
    """Be the worker of one provider until Ctrl-C; then drain."""
    from workers import process

    settings = load_settings()
    classes = [name.strip() for name in serves.split(",") if name.strip()] if serves is not None else None
    if classes == []:
        raise click.UsageError("--serves names no class")
    with role_logs(settings):
        process.run(
            settings,
            load_registry(settings),
            provider,
            node or settings.node,
            classes,
            cloud_key_is_fine=allow_cloud_key,
        )


@click.command()
def beat() -> None:
    """Be Celery beat and the worker of queue `scheduler` until Ctrl-C."""
    from scheduler import process

    settings = load_settings()
    with role_logs(settings):
        process.run(settings, load_registry(settings))


@click.command()
@click.option("--address", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65_535), default=API_PORT, show_default=True, help="0: a free one.")
def api(address: str, port: int) -> None:
    """Serve the HTTP API until Ctrl-C."""
    from api.http import serving
    from api.use_cases.pool import Pool

    settings = load_settings()
    with role_logs(settings):
        serving.serve(Pool(settings), address, port)


def _prefix(context: click.Context, option: click.Parameter, path: str) -> str:
    prefix = path.strip("/")
    if not re.fullmatch(r"([A-Za-z0-9_~-]+(/[A-Za-z0-9_~-]+)*)?", prefix):
        raise click.BadParameter("letters, digits, dashes and underscores, with slashes between")
    return prefix


@click.command()
@click.option("--address", metavar="ADDR", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=FLOWER_PORT, show_default=True, help="0: a free one.")
@click.option("--url-prefix", metavar="PATH", default="", callback=_prefix, help="All pages are under it.")
@click.option("--writable", is_flag=True, help="Let the pages stop workers and send tasks; else they only show.")
def flower(address: str, port: int, url_prefix: str, writable: bool) -> None:
    """Be Flower, the pool's monitor, until Ctrl-C; OFFLOAD_FLOWER_AUTH is its user:password, else one is made."""
    from api import flower_role

    settings = load_settings()
    with role_logs(settings):
        flower_role.run(settings, load_registry(settings), flower_role.Door(address, port, url_prefix, writable))


def __getattr__(name: str) -> click.Command:
    if name == "simulate":  # the simulator brings its own command; importing it loads a server
        from workers.simulator.cli import command

        return command
    raise AttributeError(name)
