"""The command line.  stdout is data, stderr is for people.

    exit  meaning
    0     fine
    1     unexpected: the pool or this program is broken
    2     usage or bad input; nothing was submitted
    3     the output failed its JSON check (`run --json`)
    4     not finished in time (`--timeout`)
    5     not found
    6     finished, with some jobs not done
    7     a local_only job found no local server before its deadline (`run`)
    130   interrupted with Ctrl-C; submitted work goes on

Each command is imported when it is called, so that `offload --help` is quick.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from api.interrupts import INTERRUPTED, heed_swallowed

#: command -> (module of this package, attribute, what `offload --help` says)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "submit": ("submit", "submit", "Submit a file of jobs; print the batch's id."),
    "run": ("run", "run", "Run one job and print its output."),
    "fan-out": ("fan_out", "fan_out", "Ask many at once and merge their answers."),
    "wait": ("watch", "wait", "Wait until a batch is over."),
    "status": ("watch", "status", "Show a batch, or the pool."),
    "batches": ("watch", "batches", "List batches, the newest first."),
    "results": ("results", "results", "Print a batch's results as JSONL."),
    "cancel": ("cancel", "cancel", "Cancel what a batch still has before it."),
    "pause": ("control", "pause", "Send nothing more of a batch for now."),
    "resume": ("control", "resume", "Go on with a paused batch or a drained node."),
    "retry": ("control", "retry", "Submit a batch's lines that were not done again."),
    "nodes": ("nodes", "nodes", "Show the nodes; stop and start their model servers."),
    "drain": ("nodes", "drain", "Let a node finish what runs and take nothing new."),
    "doctor": ("doctor", "doctor", "Check everything; say how to mend what is broken."),
    "healthy": ("healthy", "healthy", "Whether one role is well; for containers' health checks."),
    "up": ("pool", "up", "Run the whole pool on this machine."),
    "down": ("pool", "down", "Stop the pool that runs in the background."),
    "service": ("service", "service", "Have the pool, or one role, start with your session."),
    "worker": ("roles", "worker", "Be the worker of one provider."),
    "beat": ("roles", "beat", "Be beat and the scheduler queue's worker."),
    "api": ("roles", "api", "Serve the HTTP API."),
    "flower": ("roles", "flower", "Be Flower, the pool's monitor."),
    "metrics": ("metrics", "metrics", "Serve /metrics for Prometheus."),
    "simulate": ("roles", "simulate", "Be a model server without a GPU."),
    "stats": ("stats", "stats", "What the pool did, by category, model, node or app."),
    "rollup": ("stats", "rollup", "Sum the hours that are due; show and export one."),
    "prune": ("stats", "prune", "Delete calls that are older than their retention."),
    "notify": ("notify", "notify", "Tell people what happens: try the receivers, list what they were told."),
    "policy": ("policy", "policy", "Show, explain and test the policy."),
    "audit": ("audit", "audit", "Second opinions on finished jobs: list, show, label, report."),
    "keys": ("keys", "keys", "Keys of the HTTP API: create, list, revoke."),
    "db": ("db", "db", "The ledger's tables: bring them to this version."),
    "backup": ("backup", "backup", "Copy the pool into a folder while it runs."),
    "restore": ("backup", "restore", "Put a backup back into an empty pool."),
    "config": ("config", "config", "Check the configuration; print its schema."),
}


class Lazy(click.Group):
    """A group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[name]
        command: click.Command = getattr(importlib.import_module(f"api.commands.{module}"), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `offload results … | head` is no fault, and Python's last flush must not find one
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, says) for name, (_, _, says) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            raise click.UsageError(f"no command {args[0]!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        return super().resolve_command(ctx, args)


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="offload", message="%(version)s")
def cli() -> None:
    """Offload: a self-hosted batch pool for the language models you already own."""


def main() -> None:
    """The `offload` executable."""
    heed_swallowed()
    sys.exit(run_cli(sys.argv[1:]))


def run_cli(arguments: Sequence[str]) -> int:
    """Run one command line; every error of ours is one message and its exit code."""
    code: Any
    if any("\udc80" <= c <= "\udcff" for text in arguments for c in text):
        click.echo("offload: the command line is not UTF-8", err=True)
        return 2
    try:
        code = cli.main(list(arguments), prog_name="offload", standalone_mode=False)
    except SystemExit as stop:
        code = stop.code
    except click.exceptions.Abort:
        code = INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except Exception as error:
        code = _report(error)
    return code if isinstance(code, int) else 0


def _report(error: Exception) -> int:
    from api.commands.output import say
    from tasks.errors import OffloadError

    if isinstance(error, OffloadError):
        say(f"offload: {error}")
        return error.exit_code
    if words := _ledger_words(error):
        click.echo(f"offload: {words}", err=True)
        return 1
    if _debugging():  # where, and not what: a foreign message may hold a prompt
        traceback.print_tb(error.__traceback__)
    click.echo(f"offload: unexpected {_name(error)}; OFFLOAD_LOG_LEVEL=debug shows where", err=True)
    return 1


#: what the database says -> what a person can do; the first that is said counts
LEDGER_WORDS = {
    "is full": "the disk of the ledger, or of temporary files, is full, and nothing was submitted; free space",
    "is locked": "another process holds the ledger's lock for too long (is one stopped?); try again",
    "readonly": "the ledger cannot be written; look at the rights of OFFLOAD_HOME",
    "not a database": "the ledger's file is no database; restore it, or name another OFFLOAD_HOME",
    "malformed": "the ledger's file is damaged; restore it, or name another OFFLOAD_HOME",
    "disk I/O error": "the disk that holds the ledger fails; look at it, and try again",
    "connection timeout expired": "the ledger's PostgreSQL does not answer; see OFFLOAD_DATABASE_URL",
    "too many clients": "the ledger's PostgreSQL has no connection left; try again, or raise max_connections",
    "remaining connection slots": "the ledger's PostgreSQL has no connection left; try again, or raise max_connections",
    "connection failed": "the ledger's PostgreSQL cannot be reached; is it running? see OFFLOAD_DATABASE_URL",
    "connection is closed": "the connection to PostgreSQL broke; look with `offload batches`, and try again",
    "terminating connection": "PostgreSQL ended the connection; look with `offload batches`, and try again",
    "closed the connection": "PostgreSQL closed the connection; look with `offload batches`, and try again",
    "No space left": "the disk of the ledger's PostgreSQL is full; free space and try again",
    "statement timeout": "the ledger's PostgreSQL took too long for one statement; is it overloaded? try again",
    "lock timeout": "another transaction holds rows of the ledger for too long; try again",
    "read-only transaction": "the ledger's PostgreSQL is read-only (a replica?); see OFFLOAD_DATABASE_URL",
    "permission denied": "the user in OFFLOAD_DATABASE_URL may not write the ledger's tables",
}


def _ledger_words(error: Exception) -> str:
    """An error of a database or a full disk in words; empty for any other."""
    import errno
    import sqlite3

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "a disk is full: that of the output, of temporary files or of OFFLOAD_HOME; free space, and try again"
    said = str(getattr(error, "orig", "") or (error if isinstance(error, sqlite3.Error) else ""))
    return next((words for sign, words in LEDGER_WORDS.items() if sign in said), "")


def _debugging() -> bool:
    return os.environ.get("OFFLOAD_LOG_LEVEL", "").lower() == "debug"


def _name(error: Exception) -> str:
    """A foreign error's class, and its own words only where they cannot hold a prompt: a database's first line."""
    cause = getattr(error, "orig", None) or error
    if not isinstance(cause, OSError) and cause is error:
        return type(error).__name__
    said = str(cause).strip().split("\n")[0]  # DETAIL, CONTEXT and QUERY quote rows
    return f"{type(error).__name__} ({said})"
