"""Every command against a pool that runs: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.commands import COMMANDS
from tests.support.cli import Ran, examined, executable, jsonl, started
from tests.support.pool import TestPool, running, simulated
from tests.support.waiting import eventually
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

#: never answered while a test looks
STUCK = "[[sim:delay=600]]"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FIELDS = {"privacy", "verdict"} | {
    "id",
    "category",
    "state",
    "output",
    "model",
    "provider",
    "node",
    "attempts",
    "tokens",
    "duration_ms",
}


@pytest.fixture(scope="module")
def simulator() -> Iterator[BackgroundSimulator]:
    """The module's model server."""
    with in_thread(SimulatorConfig(slots=64, loaded_limit=8)) as made:
        yield made


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, simulator: BackgroundSimulator) -> Iterator[TestPool]:
    """A running pool; nobody in it serves class `reason`."""
    config = simulated(simulator.url, in_flight=32)
    config["categories"] = {"summarize": {"audit": 0}}  # a second opinion would add to a result between two looks at it
    with running(tmp_path_factory.mktemp("commands"), config) as made:
        made.up(serves="small,coder,embed")
        yield made


def summaries(*prompts: str) -> list[dict[str, Any]]:
    return [{"id": f"j{i}", "category": "summarize", "prompt": prompt} for i, prompt in enumerate(prompts)]


@pytest.fixture
def stuck(pool: TestPool, simulator: BackgroundSimulator) -> Iterator[str]:
    """A batch of two done jobs and two that are in flight and will not end; cancelled after the test."""
    eventually(lambda: simulator.stats()["in_flight"] == 0, "the test before is over")
    batch = pool.submit(summaries("One.", f"Two. {STUCK}", "Three.", f"Four. {STUCK}"))
    eventually(lambda: pool.batch(batch).done == 2, "two are done")
    eventually(lambda: simulator.stats()["in_flight"] == 2, "two are in flight")
    yield batch
    pool.cli("cancel", batch)


@pytest.mark.slow
def test_submit_prints_the_id_and_nothing_else_on_stdout(pool: TestPool) -> None:
    """stdout is the batch's id, so that a shell can keep it; --json says more."""
    ran = pool.cli("submit", "-", "--name", "mine", stdin=jsonl(summaries("One.")))
    assert ran.code == 0
    assert ran.text.startswith("batch_")
    assert ran.stdout.count(b"\n") == 1
    assert pool.batch(ran.text).name == "mine"
    ran = pool.cli("submit", "-", "--json", stdin=jsonl(summaries("One.")))
    assert set(ran.json) == {"id", "jobs", "rejected", "new"}


@pytest.mark.slow
def test_submit_wait_writes_the_results_in_input_order(pool: TestPool, tmp_path: Path) -> None:
    """--wait: progress on stderr, results on stdout or in OUT, in the order of the input whatever ends first."""
    jobs = summaries("Slow. [[sim:delay=0.5]]", *(f"Number {i}." for i in range(20)))
    ran = pool.cli("submit", "-", "--wait", stdin=jsonl(jobs))
    assert ran.code == 0, ran.stderr
    assert [r["id"] for r in ran.lines] == [job["id"] for job in jobs]
    assert all(set(r) == FIELDS and r["state"] == "done" for r in ran.lines)
    assert "21 of 21" in ran.stderr
    assert "batch_" in ran.stderr

    out = tmp_path / "out.jsonl"
    (tmp_path / "jobs.jsonl").write_bytes(jsonl(jobs))
    ran = executable(pool.environment, "submit", str(tmp_path / "jobs.jsonl"), "--wait", "-o", str(out))
    assert ran.code == 0, ran.stderr
    assert ran.text.startswith("batch_")
    assert [json.loads(x)["id"] for x in out.read_bytes().splitlines()] == [job["id"] for job in jobs]


def test_results_that_cannot_be_written_are_kept(pool: TestPool) -> None:
    """A full disk under OUT costs nothing: exit 1 and the command that fetches them."""
    ran = pool.cli("submit", "-", "--wait", "-o", "/dev/full", stdin=jsonl(summaries("One.")))
    assert ran.code == 1
    batch = ran.stderr.rpartition("offload results ")[2].strip()
    assert [r["state"] for r in pool.cli("results", batch).lines] == ["done"]


def test_a_batch_with_jobs_not_done_is_exit_6(pool: TestPool) -> None:
    """Finished with some jobs not done is 6, from `submit --wait`, from `wait`, and never a lost line."""
    ran = pool.cli("submit", "-", "--wait", stdin=jsonl(summaries("Fine.", "Bad. [[sim:400]]")))
    assert ran.code == 6
    good, bad = ran.lines
    assert (good["state"], bad["state"]) == ("done", "failed")
    assert set(bad["error"]) == {"code", "message"}
    assert bad["output"] is None
    batch = next(word for word in ran.stderr.split() if word.startswith("batch_"))
    ran = pool.cli("wait", batch, "--json")
    assert ran.code == 6
    assert (ran.json["done"], ran.json["failed"], ran.json["total"]) == (1, 1, 2)


def test_not_in_time_is_exit_4_and_the_work_goes_on(pool: TestPool, stuck: str) -> None:
    """--timeout of wait, submit --wait and run ends the waiting with 4, names the way back, and stops no job."""
    for arguments, stdin in (
        (("wait", stuck, "--timeout", "0.1"), b""),
        (("submit", "-", "--wait", "--timeout", "0.1"), jsonl(summaries(STUCK))),
        (("run", "summarize", STUCK, "--timeout", "0.1"), b""),
    ):
        ran = pool.cli(*arguments, stdin=stdin)
        assert ran.code == 4
        assert "offload wait batch_" in ran.stderr
        batch = ran.stderr.rpartition("offload wait ")[2].split(";")[0].strip()
        assert pool.batch(batch).state == "open"
        assert pool.cli("cancel", batch).code == 0


@pytest.mark.slow
def test_ctrl_c_leaves_the_batch_running_and_says_how_to_come_back(
    pool: TestPool, simulator: BackgroundSimulator
) -> None:
    """SIGINT to a real `submit --wait`: exit 130, the way back on stderr, the batch runs on."""
    with started(
        pool.environment,
        "submit",
        "-",
        "--wait",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's `&` would have it ignored
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        assert process.stdout is not None
        process.stdin.write(jsonl(summaries("One.", STUCK)))
        process.stdin.close()
        batch = process.stderr.readline().decode().strip()
        assert b"of 2" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stderr, stdout = process.stderr.read().decode(), process.stdout.read()
        assert process.wait(timeout=30) == 130
    assert f"come back with: offload wait {batch}" in stderr
    assert "Traceback" not in stderr
    assert stdout == b""
    assert pool.batch(batch).state == "open"
    eventually(lambda: pool.batch(batch).done == 1, "it goes on")
    pool.cli("cancel", batch)


def test_results_are_there_while_a_batch_runs(pool: TestPool, stuck: str, tmp_path: Path) -> None:
    """`results` of an open batch gives what has ended, in input order, to stdout, a file or as one JSON array."""
    ran = pool.cli("results", stuck)
    assert ran.code == 0
    assert [r["id"] for r in ran.lines] == ["j0", "j2"]
    assert [r["id"] for r in pool.cli("results", stuck, "--json").json] == ["j0", "j2"]
    assert pool.cli("results", stuck, "--state", "done").stdout == ran.stdout
    assert pool.cli("results", stuck, "--state", "failed").stdout == b""
    assert pool.cli("results", stuck, "--state", "failed", "--json").json == []
    out = tmp_path / "out.jsonl"
    assert pool.cli("results", stuck, "-o", str(out)).stdout == b""
    assert out.read_bytes() == ran.stdout
    assert pool.cli("results", stuck, "-o", str(tmp_path)).code == 2


def test_cancel_closes_calls_in_flight_and_keeps_results(
    pool: TestPool, simulator: BackgroundSimulator, stuck: str
) -> None:
    """cancel: the simulator sees its calls closed, what was done stays done, the rest is cancelled, once."""
    closed = simulator.stats()["closed"]
    ran = pool.cli("cancel", stuck, "--json")
    assert (ran.code, ran.json) == (0, {"id": stuck, "state": "cancelled", "cancelled": 2, "dependents": []})
    eventually(lambda: simulator.stats()["closed"] - closed == 2, "the calls are closed")
    assert [r["state"] for r in pool.cli("results", stuck).lines] == ["done", "cancelled", "done", "cancelled"]
    again = pool.cli("cancel", stuck)
    assert again.code == 0
    assert "already" in again.stderr
    assert pool.cli("wait", stuck).code == 6


def test_status_says_how_far_and_why_the_rest_waits(pool: TestPool, stuck: str) -> None:
    """status ID: counts by category, and for each class with open jobs a reason."""
    text = pool.cli("status", stuck).text
    assert "2 of 4" in text
    assert "summarize" in text
    assert "class small: 2 with here/sim" in text
    batch = pool.submit([{"category": "plan", "prompt": "Plan."}])
    waiting = pool.cli("status", batch, "--json").json["waiting"]
    assert waiting == {"reason": "no live worker serves class reason: offload doctor"}
    pool.cli("cancel", batch)


def test_everything_that_prints_prints_json_on_demand(pool: TestPool, stuck: str) -> None:
    """--json of every command is one JSON document on stdout, and exit 0."""
    for command in (
        ("batches",),
        ("status",),
        ("status", stuck),
        ("results", stuck),
        ("config", "check"),
    ):
        ran = pool.cli(*command, "--json")
        assert ran.code == 0, command
        assert ran.json, command
    assert stuck in {b["id"] for b in pool.cli("status", "--json").json["open_batches"]}
    assert pool.cli("status", "--json").json["workers"][0]["name"] == "here/sim"
    assert pool.cli("config", "schema").json["properties"]["providers"]
    assert {f["check"] for f in pool.cli("doctor", "--json").json} >= {"redis", "ledger", "beat", "worker sim"}


def test_tables_for_people(pool: TestPool, stuck: str) -> None:
    """batches and status are tables with the batch, its counts and the worker."""
    assert stuck in pool.cli("batches", "--limit", "5").text
    assert "here/sim" in pool.cli("status").text
    assert pool.cli("batches", "--limit", "1").text.count("batch_") == 1


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_every_command_explains_itself(command: tuple[str, ...], pool: TestPool) -> None:
    """--help of every command is exit 0, on stdout."""
    ran = pool.cli(*command, "--help")
    assert ran.code == 0
    assert ran.text.startswith("Usage: offload")
    assert ran.stderr == ""


@pytest.mark.slow
def test_the_executable_is_the_same_program(pool: TestPool) -> None:
    """The installed `offload` answers with the same codes and the package's version."""
    version = executable(pool.environment, "--version")
    assert version.code == 0
    assert version.text[0].isdigit()
    ran = executable(pool.environment, "results", "batch_0")
    assert (ran.code, ran.stdout) == (5, b"")
    assert ran.stderr.startswith("offload: there is no batch")


@pytest.mark.slow
def test_a_closed_pipe_is_no_fault(pool: TestPool) -> None:
    """`offload results ID | head -1` ends quietly."""
    batch = pool.submit([{"category": "embed", "input": [f"{i}-{k}" for k in range(8)]} for i in range(12)])
    pool.finished(batch)
    with started(pool.environment, "results", batch, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10) == b'{"id":"1",'
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 0


def run(pool: TestPool, *arguments: str, stdin: bytes = b"") -> Ran:
    return pool.cli("run", *arguments, "--timeout", "60", stdin=stdin)


def test_run_prints_the_output(pool: TestPool) -> None:
    """run prints text as it is, JSON and vectors as JSON, and nothing on stderr."""
    ran = run(pool, "summarize", "A short note.")
    assert (ran.code, ran.stderr) == (0, "")
    assert ran.text
    assert run(pool, "summarize", "-", stdin="Grüße aus dem Süden.".encode()).code == 0
    assert isinstance(run(pool, "extract", "Name the city.", "--json").json, (dict, list))
    vector = run(pool, "embed", "A text.").json
    assert len(vector) == 1024
    assert all(isinstance(x, float) for x in vector)


@pytest.mark.slow
def test_run_through_the_executable(pool: TestPool) -> None:
    """The real executable runs a job that is piped to it."""
    ran = executable(pool.environment, "run", "summarize", "-", "--timeout", "60", stdin=b"A short note.")
    assert (ran.code, ran.stderr) == (0, "")
    assert ran.text


def test_run_with_a_schema_gives_json_of_that_schema(pool: TestPool, tmp_path: Path) -> None:
    """--schema FILE: the output obeys it; a file that is no schema is exit 2."""
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    ran = run(pool, "extract", "Which city?", "--schema", str(path))
    assert ran.code == 0, ran.stderr
    assert isinstance(ran.json["city"], str)
    path.write_text("{")
    assert run(pool, "extract", "Which city?", "--schema", str(path)).code == 2
    path.write_text('{"type": "objekt"}')
    ran = run(pool, "extract", "Which city?", "--schema", str(path))
    assert ran.code == 2
    assert "schema" in ran.stderr


def test_run_format_json_is_the_result_line(pool: TestPool) -> None:
    """--format json prints the result line, with what served the job; --model takes a model or a class."""
    ran = run(pool, "summarize", "A note.", "--format", "json", "--model", "qwen2.5-coder:7b", "--system", "Be brief.")
    assert ran.code == 0, ran.stderr
    assert set(ran.json) == FIELDS
    assert (ran.json["model"], ran.json["provider"], ran.json["node"]) == ("qwen2.5-coder:7b", "sim", "here")
    assert run(pool, "summarize", "A note.", "--format", "json", "--model", "coder").json["model"] == "qwen2.5-coder:7b"


@pytest.mark.parametrize(("fault", "more"), [("badjson", ()), ("wrongschema", ("--schema", "schema.json"))])
def test_an_answer_that_fails_its_json_check_is_exit_3(
    fault: str, more: tuple[str, ...], pool: TestPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run --json with an answer that is no such JSON, after all attempts: exit 3, and no output is shown."""
    monkeypatch.chdir(tmp_path)
    Path("schema.json").write_text(json.dumps(SCHEMA))
    ran = run(pool, "extract", f"City? [[sim:{fault}]]", "--json", *more)
    assert (ran.code, ran.stdout) == (3, b"")
    assert ran.stderr.startswith("failed: ")


def test_a_job_that_was_not_done_is_exit_6(pool: TestPool) -> None:
    """run of a job that fails for another reason: exit 6, code and reason on stderr."""
    ran = run(pool, "summarize", "[[sim:400]]")
    assert (ran.code, ran.stdout) == (6, b"")
    assert ran.stderr.startswith("failed: ")
    ran = run(pool, "summarize", "[[sim:400]]", "--format", "json")
    assert (ran.code, ran.json["state"]) == (6, "failed")


def test_a_whole_pool_is_fine(pool: TestPool) -> None:
    """doctor finds nothing in a pool that lacks nothing but a worker for one class, and names that."""
    ran = examined(pool.cli, broken=["class reason"])
    assert "offload worker --provider sim --serves reason" in ran.text


@pytest.mark.slow
def test_simulate_serves_and_stops_on_a_signal(pool: TestPool) -> None:
    """`offload simulate --port 0` says where it listens, answers, and ends with 0 on SIGTERM; a used port is exit 2."""
    with started(pool.environment, "simulate", "--port", "0", stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        url = process.stderr.readline().decode().split()[-1]
        assert httpx.get(f"{url}/api/version", timeout=10).status_code == 200
        ran = executable(pool.environment, "simulate", "--port", url.rpartition(":")[2])
        assert ran.code == 2
        assert "is in use" in ran.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
