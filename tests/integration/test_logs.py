"""JSON logs of real roles: one object a line, job and batch where it is about one, and nothing of what was said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.cli import executable
from tests.support.pool import Redis, TestPool, clean_environment, running, simulated
from tests.support.waiting import eventually
from workers.simulator import SimulatorConfig, in_thread

#: stands in every prompt
MARK = "zanzibar"
#: what the simulator does with a prompt
FATES = (
    "", "[[sim:400]]", "[[sim:500*1]]", "[[sim:reset]]", "[[sim:notjson]]", "[[sim:midstream-error]]", "[[sim:empty]]",
    "[[sim:half]]", "[[sim:truncated]]", "[[sim:badjson]]", "[[sim:wrongschema]]", "[[sim:nul]]", "[[sim:429*1]]",
)  # fmt: skip
SCHEMA = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestPool]:
    """Beat and a worker that log everything there is, as JSON, into one file."""
    folder = tmp_path_factory.mktemp("logs")
    with in_thread(SimulatorConfig(slots=64, loaded_limit=8)) as simulator:
        config = simulated(simulator.url)
        config["categories"] = {
            "plain": {"class": "small", "audit": 1, "attempts": 2},
            "form": {"class": "small", "json": True, "audit": 0, "attempts": 2},
        }
        redis = Redis(folder / "redis")
        with running(folder, config, redis=redis) as made:
            made.environment |= {"OFFLOAD_LOG_FORMAT": "json", "OFFLOAD_LOG_LEVEL": "debug"}
            yield made
        redis.close()


def lines_of(pool: TestPool) -> list[dict[str, Any]]:
    """Every line that was written; fails at one that is no JSON object."""
    found = []
    for line in (pool.home.parent / "roles.log").read_text().rpartition("\n")[0].splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            pytest.fail(f"no JSON: {line[:300]!r}")
        assert isinstance(said, dict)
        found.append(said)
    return found


@pytest.mark.slow
def test_roles_say_what_they_do_and_not_what_was_said(pool: TestPool) -> None:
    """Done, failing and broken jobs at debug level, a Redis that goes and comes, and an orderly end.

    Every line is one JSON object with a time and a level, a failed job's names job and batch, and neither prompt nor
    answer is in any of them.
    """
    worker = pool.up()
    jobs: list[dict[str, Any]] = [
        {"id": f"p{i}", "category": "plain", "prompt": f"{MARK} {fate}"} for i, fate in enumerate(FATES)
    ]
    jobs += [
        {"id": f"f{i}", "category": "form", "prompt": f"{MARK} {fate}", "schema": SCHEMA}
        for i, fate in enumerate(FATES)
    ]
    batch = pool.submit(jobs)
    results = {r["id"]: r for r in pool.finished(batch, 90)}
    pool.redis.kill()
    eventually(lambda: any("redis" in str(said).lower() for said in lines_of(pool)), "somebody misses Redis")
    pool.redis.start()
    worker.terminate()
    assert worker.wait(30) == 0

    said = lines_of(pool)
    answers = {str(r["output"]) for r in results.values() if r["output"] is not None}
    assert answers
    assert not [words for words in (MARK, *answers) if words in json.dumps(said)]
    assert all({"event", "level", "timestamp"} <= set(line) for line in said)
    assert {"debug", "info", "warning"} <= {line["level"] for line in said}

    with pool.db.read() as c:
        ids: dict[int, str] = dict(c.exec_driver_sql("SELECT id, line_id FROM jobs WHERE batch_id = ?", (batch,)).all())
    of = {state: {n for n, r in results.items() if r["state"] == state} for state in ("done", "failed")}
    assert len(of["failed"]) > 5
    for event, state in (("a job is done", "done"), ("a job failed", "failed")):
        mine = [line for line in said if line["event"] == event and line["batch"] == batch]
        assert {ids[line["job"]] for line in mine} == of[state], event
    failed = {ids[line["job"]]: line["error"] for line in said if line["event"] == "a job failed"}
    assert failed == {n: results[n]["error"]["code"] for n in of["failed"]}
    assert all({"job", "batch", "error"} <= set(line) for line in said if line["event"] == "an attempt failed")


@pytest.mark.slow
def test_a_role_that_cannot_start_says_so_as_json(pool: TestPool) -> None:
    """The error that ends it is a line like the others, its exit code the same."""
    plain = executable(pool.environment | {"OFFLOAD_LOG_FORMAT": "console"}, "worker", "--provider", "nobody")
    ran = executable(pool.environment, "worker", "--provider", "nobody")
    (said,) = map(json.loads, ran.stderr.splitlines())
    assert (ran.code, said["level"], ran.stdout) == (plain.code, "critical", b"")
    assert plain.stderr == f"offload: {said['event']}\n"


SAYS = f"""
import logging, threading, warnings
from api.logs import configure_logs
from tasks.settings import Settings

configure_logs(Settings(log_format="{{format}}", log_level="info"))

def fails():
    prompt = "{MARK} in a variable"
    raise ValueError("{MARK} in words: " + prompt)

try:
    fails()
except ValueError:
    logging.getLogger("library").exception("a library's line %s", 1)
    import structlog
    structlog.get_logger().exception("a line of ours", job=7)
warnings.warn("a warning")
thread = threading.Thread(target=fails, name="worker-thread")
thread.start()
thread.join()
logging.getLogger("library").debug("too quiet")
"""


@pytest.mark.parametrize("form", ["json", "console"])
def test_errors_are_shown_without_their_words(form: str) -> None:
    """Class and place of an exception, of a library's line, of ours, of a thread's end; no message and no variable."""
    done = subprocess.run(
        [sys.executable, "-c", SAYS.replace("{format}", form)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert MARK not in done.stderr
    assert done.stderr.count("ValueError") == 3
    assert "a warning" in done.stderr
    assert "too quiet" not in done.stderr
    if form == "json":
        library, ours, warning, thread = map(json.loads, done.stderr.splitlines())
        assert (library["event"], library["exception"]) == ("a library's line 1", "ValueError")
        assert library["at"][-1].startswith("<string>:")
        assert (ours["event"], ours["job"], ours["level"]) == ("a line of ours", 7, "error")
        assert warning["level"] == "warning"
        assert (thread["event"], thread["thread"]) == ("a thread died", "worker-thread")
