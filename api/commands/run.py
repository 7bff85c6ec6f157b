"""offload run"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import orjson

from api.commands.deadlines import Deadline
from api.commands.output import Seconds, say
from api.commands.said import app_option, said_options
from api.commands.submit import dispatch_now
from api.interrupts import GoingOn
from api.use_cases.pool import Pool
from api.use_cases.submitting import When, submit_line
from tasks.errors import InputError, LineFault
from tasks.ledger import reading
from tasks.ledger.endings import NO_LOCAL_SERVER
from tasks.ledger.submit import DEFAULT_DEADLINE_S
from tasks.routing import Said
from tasks.states import ANSWERED, TERMINAL, JobState

#: seconds between two looks at the job: the first ones, and after a while
POLL_FIRST_S, POLL_S, POLL_FIRST_FOR_S = 0.01, 0.05, 60.0
#: somebody waits for this job, so it starts before batch work
RUN_PRIORITY = 100
#: errors that mean: the answer was there and was no such JSON
JSON_ERRORS = frozenset({"bad_json", "schema_mismatch"})


@click.command()
@click.argument("category")
@click.argument("prompt")
@click.option("--json", "wants_json", is_flag=True, help="Ask the model for JSON; exit 3 when its answer is none.")
@click.option("--schema", type=click.Path(path_type=Path), metavar="FILE", help="Ask for JSON of this JSON Schema.")
@click.option("--system", metavar="TEXT", help="Instructions before the prompt.")
@click.option("--model", metavar="M", help="A configured model or class.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="json: the result line.")
@click.option(
    "--deadline", type=Deadline(), metavar="WHEN", help="A job not done by then expires: 30m, 2h, 18:30 (24h)."
)
@said_options
@app_option
@click.option("--timeout", type=Seconds(), metavar="S", help="Exit 4 after so many seconds.")
def run(
    category: str,
    prompt: str,
    wants_json: bool,
    schema: Path | None,
    system: str | None,
    model: str | None,
    form: str,
    deadline: When | None,
    said: Said,
    app: str | None,
    timeout: float | None,
) -> None:
    """Run one job of CATEGORY with PROMPT (- is stdin), wait, and print the output."""
    line: dict[str, Any] = {"category": category, "prompt": read_prompt(prompt)}
    line |= {k: v for k, v in (("system", system), ("model", model)) if v is not None}
    if wants_json:
        line["json"] = True
    if schema is not None:
        line["schema"] = json_file(schema)
    pool = Pool()
    with GoingOn() as going:
        batch_id = submit_line(
            pool,
            orjson.dumps(line),
            name=f"run {category}",
            priority=RUN_PRIORITY,
            said=replace(said, app=app),
            deadline=DEFAULT_DEADLINE_S if deadline is None else deadline,
            on_opening=going.opening,
        )
        going.begun(batch_id)
        if reading.one_job(pool.db, batch_id).state not in TERMINAL:  # the policy may have refused it
            dispatch_now(pool)
        job = _wait(pool, batch_id, timeout)
    sys.exit(_finish(job, batch_id, form))


def read_prompt(given: str) -> str:
    """A prompt as it was given, `-` read from stdin; raises InputError."""
    if given != "-":
        text = given
    else:
        try:
            text = sys.stdin.buffer.read().decode("utf-8")
        except UnicodeDecodeError:
            raise InputError([LineFault(0, "stdin", "is not UTF-8")]) from None
    if not text.strip():
        raise InputError([LineFault(0, "prompt", "is empty")])
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError([LineFault(0, "prompt", "is not UTF-8")]) from None
    return text


def json_file(path: Path) -> Any:
    """A JSON document; raises InputError."""
    try:
        return orjson.loads(path.read_bytes())
    except OSError as error:
        raise InputError([LineFault(0, str(path), f"cannot be read ({error.strerror})")]) from None
    except orjson.JSONDecodeError as error:
        raise InputError([LineFault(0, str(path), f"is not JSON (line {error.lineno}: {error.msg})")]) from None


def _finish(job: Any, batch_id: str, form: str) -> int:
    if job is None:
        say(f"not finished in time; the job goes on: offload wait {batch_id}; offload results {batch_id}")
        return 4
    if form == "json":
        sys.stdout.buffer.write(reading.result_line(job, job.output) + b"\n")
    elif job.state in ANSWERED:
        _print_output(job.output)
    sys.stdout.flush()
    if job.state == JobState.ESCALATED:
        say(
            f"escalated: answered by {job.served_model} on {job.provider}"
            + (f" ({job.escalation})" if job.escalation else "")
        )
    if job.state in ANSWERED:
        return 0
    say(why_not(job))
    return 3 if job.error_code in JSON_ERRORS else 7 if job.error_code == NO_LOCAL_SERVER else 6


def why_not(job: Any) -> str:
    """Why a job was not done, in words."""
    code = "" if job.error_code == job.state else f"{job.error_code}: "
    return f"{job.state}: {code}{job.error_message}"


def _print_output(output: bytes) -> None:
    """Text as it is; JSON and vectors as JSON."""
    value = orjson.loads(output)
    click.echo(value if isinstance(value, str) else output.decode())


def _wait(pool: Pool, batch_id: str, timeout: float | None) -> Any:
    """The job's row once it is terminal; None when the time has passed first."""
    began = time.monotonic()
    while True:
        job = reading.one_job(pool.db, batch_id)
        if job.state in TERMINAL:
            return job
        waited = time.monotonic() - began
        if timeout is not None and waited >= timeout:
            return None
        time.sleep(POLL_FIRST_S if waited < POLL_FIRST_FOR_S else POLL_S)
