"""offload fan-out"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import orjson

from api.commands.deadlines import Deadline
from api.commands.fan_given import Given, unescaped
from api.commands.output import (
    Group,
    Seconds,
    check_writable,
    describe,
    print_json,
    print_text,
    progress_line,
    result_file,
    say,
)
from api.commands.run import json_file
from api.commands.said import app_option, said_options
from api.commands.submit import PRIORITY, dispatch_now
from api.interrupts import GoingOn
from api.use_cases import fan_views
from api.use_cases.fanning import FanOut, Started, cancel, estimate, follow, start
from api.use_cases.pool import Pool
from api.use_cases.submitting import When
from tasks.errors import LineFault
from tasks.ledger import fan_outs
from tasks.ledger.fan_outs import Stage
from tasks.ledger.submit import DEFAULT_DEADLINE_S
from tasks.routing import Said

#: parts of the tree, and names of what is missing, that a terminal is shown
MOST_SHOWN, MOST_MISSING = 200, 20
#: the category of inputs of which nobody says any
CATEGORY = "chat"


class _WithDefault(Group):
    """A group whose first argument may be an input: then it starts a fan-out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["start", *args]
        return super().parse_args(ctx, args)


@click.group("fan-out", cls=_WithDefault)
def fan_out() -> None:
    """Ask many at once and merge their answers.

    `offload fan-out INPUTS …` starts one; `offload fan-out start --help` shows its options.
    """


@fan_out.command("start")
@click.argument("inputs", nargs=-1)
@click.option("--lines", metavar="FILE", help="Inputs are a file's lines: {line}.")
@click.option("--jsonl", metavar="FILE", help="Inputs are JSON objects, one a line: {KEY}.")
@click.option("--csv", metavar="FILE", help="Inputs are a CSV's rows: {COLUMN}.")
@click.option("--agents", type=click.Path(path_type=Path), metavar="FILE", help="Inputs are agents, from a YAML file.")
@click.option(
    "--each", metavar="PROMPT", help=r"What each input is asked; of files {path} and {content}; \n ends a line."
)
@click.option("--prompt", metavar="PROMPT", help="What all agents are asked; {agent} is the name.")
@click.option("--file", metavar="FILE", help="What the agents are asked about: {content}, else below the prompt.")
@click.option("--category", metavar="C", default=CATEGORY, show_default=True, help="Category of the inputs' jobs.")
@click.option("--system", metavar="TEXT", help="Instructions before each prompt.")
@click.option("--schema", type=click.Path(path_type=Path), metavar="FILE", help="Ask for JSON of this JSON Schema.")
@click.option(
    "--merge",
    metavar="HOW",
    required=True,
    help="concat, json, json-object, vote, best, or a prompt with {results}.",
)
@click.option("--merge-category", metavar="C", help="Category of the merges (reason, if its class is served).")
@click.option("--quorum", type=float, metavar="SHARE", help="Merge once so many have answered; cancel the others.")
@click.option("--name", metavar="N", help="A name for people.")
@click.option("--idempotency-key", "key", metavar="K", help="Starting again with this key gives the same fan-out.")
@click.option("--priority", type=PRIORITY, default=0, metavar="N", help="Higher is served first: -99 to 99, else 0.")
@click.option("--deadline", type=Deadline(), metavar="WHEN", help="How long the inputs have, and each merge (24h).")
@said_options
@app_option
@click.option("--no-wait", is_flag=True, help="Print the fan-out's id and let it go on.")
@click.option("--dry-run", is_flag=True, help="Check everything; print how many jobs and merges there would be.")
@click.option("-o", "--output", metavar="OUT", help="Where the result goes (default: stdout).")
@click.option("--timeout", type=Seconds(), metavar="S", help="Exit 4 after so many seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def start_(
    inputs: tuple[str, ...],
    lines: str | None,
    jsonl: str | None,
    csv: str | None,
    agents: Path | None,
    each: str | None,
    prompt: str | None,
    file: str | None,
    category: str,
    system: str | None,
    schema: Path | None,
    merge: str,
    merge_category: str | None,
    quorum: float | None,
    name: str | None,
    key: str | None,
    priority: int,
    deadline: When | None,
    said: Said,
    app: str | None,
    no_wait: bool,
    dry_run: bool,
    output: str | None,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Ask the same of INPUTS (files, globs, folders), or of lines, rows or agents, and merge the answers.

    Every piece is a job, and everything is checked before one is submitted. Exit 6 when some were not answered.
    """
    _check_lengths(name, key)
    if no_wait and (output is not None or timeout is not None):
        raise click.UsageError("-o and --timeout wait for the result; --no-wait does not")
    check_writable(output)
    pool = Pool()
    given = Given(pool, said, inputs, {"lines": lines, "jsonl": jsonl, "csv": csv}, category, system)
    asked, placeholders, items = given.of_agents(agents, prompt, file) if agents else given.of_each(each, prompt, file)
    wanted = FanOut(
        asked=asked,
        items=items,
        placeholders=placeholders,
        merge=unescaped(merge),
        merge_category=merge_category,
        schema=json_file(schema) if schema else None,
        quorum=quorum,
        said=replace(said, app=app),
        name=name,
        key=key,
        priority=priority,
        deadline=DEFAULT_DEADLINE_S if deadline is None else deadline,
    )
    if dry_run:
        _tell_estimate(estimate(pool, wanted, _say_fault), as_json)
        return
    with GoingOn(None, "fan-out", "offload fan-out status {0}", "offload fan-out status {0}") as going:
        started = start(pool, wanted, _say_fault, going.opening)
        going.begun(started.fan_out_id)
        _announce(started, no_wait, as_json)
        dispatch_now(pool)
        if not no_wait:
            sys.exit(_wait(pool, started.fan_out_id, timeout, output, as_json))


@fan_out.command()
@click.argument("fan_out_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(fan_out_id: str, as_json: bool) -> None:
    """Show fan-out ID: its steps, and the tree of what is merged with what."""
    pool = Pool()
    row = fan_outs.one(pool.db, fan_out_id)
    found, nodes = fan_views.summary(pool, row), fan_views.tree(pool, row)
    if as_json:
        print_json(found | {"tree": nodes})
        return
    print_text(f"{row.id}  {row.state}  {len(row.inputs):,} input{'s' * (len(row.inputs) != 1)}, {row.plan['how']}")
    for step in found["steps"]:
        answered = step["done"] + step["escalated"]
        ended = sum(step[s] for s in ("done", "escalated", "failed", "refused", "cancelled", "expired"))
        lost = f", {ended - answered:,} not done" if ended > answered else ""
        print_text(f"{step['what']:<8}{step['batch']}  {ended:,} of {step['total']:,}{lost}")
    for number, line in enumerate(_branches(nodes, "")):
        if number == MOST_SHOWN:
            print_text(f"… `offload fan-out status {row.id} --json` has all of it")
            break
        print_text(line)
    _tell_end(row, found.get("missing", []))
    if row.state == Stage.DONE:
        say(f"its result: offload fan-out result {row.id}")


@fan_out.command()
@click.argument("fan_out_id", metavar="ID")
@click.option("-o", "--output", metavar="OUT", help="Where the result goes (default: stdout).")
@click.option("--timeout", type=Seconds(), metavar="S", help="Exit 4 after so many seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the result in it.")
def result(fan_out_id: str, output: str | None, timeout: float | None, as_json: bool) -> None:
    """Wait for fan-out ID and print its result."""
    check_writable(output)
    pool = Pool()
    fan_outs.one(pool.db, fan_out_id)
    with GoingOn(fan_out_id, "fan-out", "offload fan-out status {0}", "offload fan-out status {0}"):
        sys.exit(_wait(pool, fan_out_id, timeout, output, as_json))


@fan_out.command("cancel")
@click.argument("fan_out_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cancel_(fan_out_id: str, as_json: bool) -> None:
    """Cancel what fan-out ID still has before it; calls in flight are closed, answers are kept."""
    pool = Pool()
    stopped = cancel(pool, fan_out_id)
    row = fan_outs.one(pool.db, fan_out_id)
    if as_json:
        print_json({"id": row.id, "state": row.state, "cancelled": stopped})
        return
    say(f"{stopped:,} jobs cancelled; the fan-out is {row.state}" if stopped else f"the fan-out is {row.state}")


def _check_lengths(name: str | None, key: str | None) -> None:
    if key is not None and not 1 <= len(key) <= 200:
        raise click.UsageError("--idempotency-key has 1 to 200 characters")
    if len(name or "") > 200:
        raise click.UsageError("--name has 200 characters at most")


# --- what is said -----------------------------------------------------------------------------------------


def _say_fault(fault: LineFault) -> None:
    say(str(fault))


def _tell_estimate(found: Any, as_json: bool) -> None:
    if as_json:
        print_json({name: getattr(found, name) for name in found.__dataclass_fields__})
        return
    print_text(f"inputs         {found.inputs:>8,}")
    print_text(f"jobs           {found.jobs:>8,}  inputs that are cut into pieces: {found.cut:,}")
    print_text(f"piece merges   {found.piece_merges:>8,}")
    print_text(f"merges         {found.merges:>8,}  about, in {found.levels:,} level{'s' * (found.levels != 1)}")
    if found.refused:
        say(f"{found.refused:,} of the jobs would be refused; `offload policy explain` says why")


def _announce(started: Started, no_wait: bool, as_json: bool) -> None:
    if not started.new:
        say("this idempotency key was used before: the same fan-out")
    if no_wait and as_json:
        kept = {"id": started.fan_out_id, "batch": started.batch_id, "inputs": started.inputs, "jobs": started.jobs}
        print_json(kept | {"new": started.new})
    elif no_wait:
        click.echo(started.fan_out_id)
    else:
        say(started.fan_out_id)


def _wait(pool: Pool, fan_out_id: str, timeout: float | None, output: str | None, as_json: bool) -> int:
    """Show each step, then write the result; the exit code."""
    _show_steps(pool, fan_out_id, timeout)
    row = fan_outs.one(pool.db, fan_out_id)
    if row.state == Stage.RUNNING:
        say(f"not finished in time; the fan-out goes on: offload fan-out status {fan_out_id}")
        return 4
    missing = fan_outs.standing(pool.db, row).missing
    _tell_end(row, missing)
    if as_json:
        _print_end(pool, row, output)
    if row.state == Stage.DONE and not (as_json and output in (None, "-")):
        with result_file(output) as out:
            for part in fan_views.result(pool, row):
                out.write(part)
            out.write(b"\n")
    return 6 if missing or row.state != Stage.DONE else 0


def _show_steps(pool: Pool, fan_out_id: str, timeout: float | None) -> None:
    """A line of progress for each step."""
    for number, moments in groupby(follow(pool, fan_out_id, timeout), key=lambda moment: moment[0].step):
        with progress_line() as write:
            for row, progress in moments:
                what = row.steps[-1]["what"] if number else "inputs"
                write(f"{fan_out_id}  step {number + 1}, {what}: {describe(progress)}", progress.over)


def _tell_end(row: Any, missing: Sequence[str]) -> None:
    if row.state in (Stage.FAILED, Stage.CANCELLED):
        say(f"{row.state}: {row.error}")
    if missing:
        more = f" and {len(missing) - MOST_MISSING:,} more" if len(missing) > MOST_MISSING else ""
        say(f"not done: {', '.join(missing[:MOST_MISSING])}{more}")


def _print_end(pool: Pool, row: Any, output: str | None) -> None:
    found = fan_views.summary(pool, row)
    if (picked := fan_views.picked(pool, row)) is not None:
        found["best"] = picked
    if row.state == Stage.DONE and output in (None, "-"):
        whole = b"".join(fan_views.result(pool, row))
        found["result"] = orjson.loads(whole) if fan_views.is_json(row) else whole.decode()
    print_json(found)


def _branches(nodes: Sequence[dict[str, Any]], before: str) -> Iterator[str]:
    for number, node in enumerate(nodes):
        is_last = number == len(nodes) - 1
        what = "" if node["what"] == "input" else f"{node['what']}: "
        yield f"{before}{'└─ ' if is_last else '├─ '}{what}{node['name']}  {node['state']}"
        yield from _branches(node.get("parts", ()), before + ("   " if is_last else "│  "))
