"""offload nodes, offload drain"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from api.commands.output import Group, Seconds, print_json, progress_line, say, seconds, table
from api.interrupts import INTERRUPTED
from api.use_cases.nodes import Following, NodeWorker, all_workers, follow, want, without_workers
from api.use_cases.pool import Pool
from tasks.errors import NotInTime, PoolError
from tasks.ledger.nodes import Phase, Wanted

#: phases in which nobody asks a server how it is
UNASKED = (Phase.DRAINED, Phase.STOPPED)
#: what is wanted -> what comes of it
WORDS = {Wanted.SERVING: "serves", Wanted.DRAINED: "is drained", Wanted.STOPPED: "is stopped"}


def wanting(command: Callable[..., None]) -> Callable[..., None]:
    """The argument and the options of a command that wants something of a node."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the node's workers as JSON at the end."),
        click.option("--timeout", type=Seconds(), metavar="S", help="Exit 4 after so many seconds; it goes on."),
        click.option("--no-wait", is_flag=True, help="Say what is wanted, and do not wait for it."),
        click.argument("name", metavar="NODE"),
    ):
        command = option(command)
    return command


@click.group(cls=Group, invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def nodes(context: click.Context, as_json: bool) -> None:
    """Show the nodes and their workers; stop and start a node's model servers."""
    if context.invoked_subcommand is not None:
        return
    pool = Pool()
    workers, empty = all_workers(pool), without_workers(pool)
    if as_json:
        wanted = {name: wish.wanted for name, wish in empty.items()}
        print_json({"workers": [asdict(w) for w in workers], "without_workers": wanted})
        return
    head = ("node", "provider", "classes", "in flight", "of", "heartbeat", "phase", "health", "")
    nobody = [(name, "-", "", None, None, "gone", f"{w.wanted} wanted", "-", "") for name, w in empty.items()]
    click.echo(table(head, [*map(_row, workers), *nobody]))


def _row(w: NodeWorker) -> tuple[Any, ...]:
    beat = "gone" if w.gone else f"{seconds(w.heartbeat_s)} ago"
    health = "-" if w.gone or w.phase in UNASKED else w.health
    in_flight = None if w.gone else w.in_flight
    return w.node, w.provider, ", ".join(w.classes), in_flight, w.capacity, beat, w.phase, health, w.detail


@nodes.command()
@wanting
def stop(name: str, no_wait: bool, timeout: float | None, as_json: bool) -> None:
    """Drain NODE, then run its `stop` commands there."""
    _want(name, Wanted.STOPPED, no_wait, timeout, as_json)


@nodes.command()
@wanting
def start(name: str, no_wait: bool, timeout: float | None, as_json: bool) -> None:
    """Run the `start` commands of NODE there; it serves once its servers answer."""
    _want(name, Wanted.SERVING, no_wait, timeout, as_json)


@click.command()
@wanting
def drain(name: str, no_wait: bool, timeout: float | None, as_json: bool) -> None:
    """Let NODE finish what runs, take nothing new and unload its models, until `offload resume NODE`."""
    _want(name, Wanted.DRAINED, no_wait, timeout, as_json)


def _want(name: str, wanted: Wanted, no_wait: bool, timeout: float | None, as_json: bool) -> None:
    pool = Pool()
    wish = want(pool, name, wanted)
    last: Following | None = None
    try:
        if not no_wait:
            with progress_line() as write:
                for last in follow(pool, name, wish, timeout):
                    if last.left:
                        write(f"{name}: {_describe(last)}", False)
    except KeyboardInterrupt:
        say(f"\nit goes on: {name} {WORDS[wanted]} as soon as it can; look with: offload nodes")
        sys.exit(INTERRUPTED)
    workers = last.workers if last else [w for w in all_workers(pool) if w.node == name]
    if as_json:
        print_json([asdict(w) for w in workers])
    if last is None:
        say(f"{name} {WORDS[wanted]} as soon as it can; look with: offload nodes")
    else:
        _judge(name, last)


def _describe(step: Following) -> str:
    how = [f", its server is {w.health}" if step.wish.wanted is Wanted.SERVING else "" for w in step.left]
    return "; ".join(
        f"{w.provider} is {w.phase}, {w.in_flight} in flight{h}" for w, h in zip(step.left, how, strict=True)
    )


def _judge(name: str, last: Following) -> None:
    """Say how it ended; raises PoolError, NotInTime."""
    wanted = last.wish.wanted
    if last.now != last.wish:
        raise PoolError(f"somebody wants {name} {last.now.wanted} by now; look with: offload nodes")
    if not last.workers:
        raise PoolError(f"no worker of {name} is alive; what is wanted is kept, and a worker that starts follows it")
    if last.troubles:
        kept = [f"{name} takes no work all the same; back with: offload resume {name}"]  # until somebody says so
        told = [f"{worker}: {trouble}" for worker, trouble in sorted(last.troubles.items())]
        raise PoolError("\n".join([*(kept if wanted is Wanted.STOPPED else []), *told]))
    if last.left:
        raise NotInTime(f"not in time: {_describe(last)}; it goes on: {name} {WORDS[wanted]} as soon as it can")
    for worker in last.workers:
        say(": ".join(filter(None, (worker.name, worker.phase, worker.detail.partition("; ")[2]))))
    say(f"{name} {WORDS[wanted]}" + (f"; back with: offload resume {name}" if wanted is Wanted.DRAINED else ""))
