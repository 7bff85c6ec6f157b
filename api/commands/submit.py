"""offload submit"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import click

from api.commands.deadlines import Deadline
from api.commands.output import Seconds, check_writable, print_json, say, show_progress, write_results
from api.commands.said import app_option, said_options
from api.interrupts import GoingOn
from api.use_cases.pool import Pool
from api.use_cases.submitting import Request, Submitted, When, opened
from api.use_cases.submitting import submit as submit_file
from api.use_cases.watching import Progress, watch
from tasks.errors import BrokerDown, LineFault, PoolError
from tasks.ledger import reading
from tasks.ledger.submit import DEFAULT_DEADLINE_S
from tasks.routing import Said

#: priorities a batch may have; all are below that of `run`, for which somebody waits
PRIORITY = click.IntRange(-99, 99)
#: lines after which a long submit says where it is
SAY_EVERY_LINES = 100_000


@click.command()
@click.argument("file")
@click.option("--category", metavar="C", help="Category of lines that name none.")
@click.option("--name", metavar="N", help="A name for people.")
@click.option("--idempotency-key", "key", metavar="K", help="Submitting again with this key gives the same batch.")
@click.option("--priority", type=PRIORITY, default=0, metavar="N", help="Higher is served first: -99 to 99, else 0.")
@click.option("--deadline", type=Deadline(), metavar="WHEN", help="Jobs not done by then expire: 30m, 2h, 18:30 (24h).")
@click.option("--depends-on", "needs", multiple=True, metavar="ID", help="Wait for that batch's end; repeatable.")
@said_options
@app_option
@click.option("--notify", is_flag=True, help="Tell the end of the batch to those whom offload.yaml names.")
@click.option("--skip-invalid", is_flag=True, help="Submit the valid lines; write the others to FILE.rejected.")
@click.option("--wait", "waits", is_flag=True, help="Show progress, then write the results.")
@click.option("-o", "--output", metavar="OUT", help="With --wait: where the results go (default: stdout).")
@click.option("--timeout", type=Seconds(), metavar="S", help="With --wait: exit 4 after so many seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def submit(
    file: str,
    category: str | None,
    name: str | None,
    key: str | None,
    priority: int,
    deadline: When | None,
    needs: tuple[str, ...],
    said: Said,
    app: str | None,
    notify: bool,
    skip_invalid: bool,
    waits: bool,
    output: str | None,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Submit FILE (JSONL; - is stdin) and print the batch's id.

    All lines are checked first: if one is wrong, every fault is shown and nothing is submitted. What --touches, --for
    and --security say holds for lines that say nothing themselves, --privacy for those that are no tighter, --consent
    for all. A batch that depends on one that is cancelled is cancelled, too.
    """
    if key is not None and not 1 <= len(key) <= 200:
        raise click.UsageError("--idempotency-key has 1 to 200 characters")
    if len(name or "") > 200:
        raise click.UsageError("--name has 200 characters at most")
    if not waits and (output is not None or timeout is not None):
        raise click.UsageError("-o and --timeout need --wait")
    check_writable(output)
    pool = Pool()
    rejects = Rejects(file)
    request = Request(
        said=replace(said, category=category, app=app),
        name=name,
        key=key,
        priority=priority,
        needs=needs,
        notify=notify,
        deadline=DEFAULT_DEADLINE_S if deadline is None else deadline,
        rejects=rejects.open if skip_invalid else None,
        on_fault=_say_fault,
        on_progress=_say_progress,
    )
    to_stdout = not waits or output not in (None, "-")
    with GoingOn() as going:
        with opened(file, sys.stdin.buffer) as source:
            done = submit_file(pool, source, replace(request, on_opening=going.opening))
        going.begun(done.batch_id)
        _announce(done, rejects, to_stdout=to_stdout, as_json=as_json)
        dispatch_now(pool)
        if waits:
            last = show_progress(watch(pool, done.batch_id, timeout))
            try:
                write_results(output, reading.results(pool.db, done.batch_id), as_array=as_json and not to_stdout)
            except BrokenPipeError:
                raise
            except (OSError, click.UsageError) as error:  # its folder may be gone by now
                reason = error.message if isinstance(error, click.UsageError) else error.strerror
                raise PoolError(
                    f"the results cannot be written ({reason}); they are kept: offload results {done.batch_id}"
                ) from None
            sys.exit(exit_code(last))


class Rejects:
    """The file bad lines go to; one that is there is never overwritten."""

    def __init__(self, source: str) -> None:
        self._stem = "stdin.rejected" if source == "-" else f"{source}.rejected"
        self.path: Path | None = None

    def open(self) -> BinaryIO:
        """Make the file."""
        number = 0
        while True:
            path = Path(f"{self._stem}.{number}" if number else self._stem)
            try:
                file = path.open("xb")
            except FileExistsError:
                number += 1
                continue
            except OSError as error:
                raise click.UsageError(
                    f"{path} cannot be written ({error.strerror}); bad lines would go there"
                ) from None
            self.path = path
            return file


def _say_fault(fault: LineFault) -> None:
    say(str(fault))


def _say_progress(what: str, lines: int) -> None:
    if lines % SAY_EVERY_LINES == 0:
        say(f"{lines:,} lines {what}")


def _announce(done: Submitted, rejects: Rejects, *, to_stdout: bool, as_json: bool) -> None:
    if not done.new:
        say("this idempotency key was submitted before: the same batch")
    elif rejects.path is not None:
        say(f"{done.rejected} lines were not submitted: {rejects.path}")
    if to_stdout and as_json:
        print_json({"id": done.batch_id, "jobs": done.jobs, "rejected": done.rejected, "new": done.new})
    elif to_stdout:
        click.echo(done.batch_id)
    else:
        say(done.batch_id)


def dispatch_now(pool: Pool) -> None:
    """Send the first jobs; where Redis is away they wait, and the person is told."""
    try:
        pool.dispatch()
    except BrokerDown as error:
        say(f"{error}: the jobs wait in the ledger; `offload up` runs them")
    except Exception as error:  # the promise is given: nothing may look as if it were not
        say(f"the jobs wait for beat to send them ({type(error).__name__})")


def exit_code(last: Progress) -> int:
    """What `wait` and `submit --wait` end with."""
    if not last.over:
        say(f"not finished in time; the batch goes on: offload wait {last.batch_id}")
        return 4
    return 0 if last.all_done else 6
