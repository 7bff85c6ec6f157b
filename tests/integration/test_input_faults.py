"""Bad input: every fault of every line at once, exit 2, nothing submitted, and no prompt on the screen."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy.exc import OperationalError

from tasks.ledger import submit as loading
from tests.support.cli import EXECUTABLE, Ran, jsonl, offload
from tests.support.pool import clean_environment, simulated

#: stands in every prompt; a fault may never show it
SECRET = "my-bank-pin-is-4711"

GOOD = json.dumps({"id": "good", "category": "summarize", "prompt": SECRET}).encode()


def line(**fields: Any) -> bytes:
    return json.dumps({"category": "summarize", "prompt": SECRET} | fields).encode()


def openai_line(**body: Any) -> bytes:
    request = {"model": "gemma3:4b", "messages": [{"role": "user", "content": SECRET}]} | body
    return json.dumps({"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": request}).encode()


#: name -> (the line, the field that is named, words of the reason)
FAULTS: dict[str, tuple[bytes, str, str]] = {
    "duplicate-id": (line(id="good"), "id", "line 1 already"),
    "unknown-category": (line(category="sumarize"), "category", "did you mean 'summarize'?"),
    "no-category": (json.dumps({"prompt": SECRET}).encode(), "category", "required"),
    "not-utf-8": (b'{"category": "summarize", "prompt": "' + SECRET.encode() + b' \xff"}', "", "is not UTF-8"),
    "nul-byte": (line().replace(b"bank", b"ba\0nk"), "", "NUL byte"),
    "nul-escape": (line(prompt=f"{SECRET}\0"), "", "NUL character"),
    "lone-surrogate": (b'{"category": "summarize", "prompt": "' + SECRET.encode() + b' \\ud800"}', "", "is not JSON"),
    "not-json": (b"Summarize: " + SECRET.encode(), "", "is not JSON"),
    "cut-off": (line()[:-4], "", "is not JSON"),
    "array": (json.dumps([SECRET]).encode(), "", "is not a JSON object"),
    "text": (json.dumps(SECRET).encode(), "", "is not a JSON object"),
    "prompt-number": (line(prompt=4711), "prompt", "valid string"),
    "prompt-empty": (line(prompt=""), "prompt", "at least 1 character"),
    "temperature-text": (line(temperature="warm"), "temperature", "valid number"),
    "temperature-high": (line(temperature=3), "temperature", "less than or equal to 2"),
    "max-tokens-zero": (line(max_tokens=0), "max_tokens", "greater than or equal to 1"),
    "json-text": (line(json="sure"), "json", "valid boolean"),
    "unknown-field": (line(promt="x"), "promt", "did you mean 'prompt'?"),
    "no-prompt": (b'{"category": "summarize"}', "", "exactly one of prompt, messages, input"),
    "prompt-and-messages": (
        line(messages=[{"role": "user", "content": SECRET}]),
        "",
        "exactly one of prompt, messages, input is needed (given: prompt, messages)",
    ),
    "wrong-role": (
        json.dumps({"category": "chat", "messages": [{"role": "robot", "content": SECRET}]}).encode(),
        "messages.0.role",
        "'user'",
    ),
    "input-for-text": (b'{"category": "summarize", "input": "x"}', "input", "takes prompt or messages"),
    "messages-for-embed": (
        json.dumps({"category": "embed", "messages": [{"role": "user", "content": SECRET}]}).encode(),
        "messages",
        "an embedding takes input",
    ),
    "unknown-model": (line(model="gemma3:5b"), "model", "did you mean 'gemma3:4b'?"),
    "invalid-schema": (line(schema={"type": "objekt"}), "schema", ""),
    "remote-schema": (line(schema={"$ref": "https://example.com/schema.json"}), "schema", ""),
    "schema-no-object": (line(schema=[1]), "schema", "valid dictionary"),
    "schema-without-json": (line(schema={"type": "object"}, json=False), "json", "cannot be false"),
    "openai-stream": (openai_line(stream=True), "body.stream", "False"),
    "openai-unknown-field": (openai_line(temprature=1), "body.temprature", "did you mean 'temperature'?"),
    "openai-unknown-model": (openai_line(model="gpt-4o"), "model", "is not configured"),
    "openai-url": (
        openai_line().replace(b"/v1/chat/completions", b"/v1/moderations"),
        "url",
        "/v1/chat/completions",
    ),
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A configured home in which no pool runs."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "offload.yaml").write_text(yaml.safe_dump(simulated("http://127.0.0.1:9")))
    return clean_environment() | {"OFFLOAD_HOME": str(home)}


def submitted(environment: dict[str, str]) -> list[Any]:
    """The batches there are."""
    found: list[Any] = offload(environment, "batches", "--json").json
    return found


def assert_refused(ran: Ran, environment: dict[str, str]) -> None:
    assert ran.code == 2, ran.stderr
    assert ran.stdout == b""
    assert SECRET not in ran.stderr
    assert "4711" not in ran.stderr
    assert "Traceback" not in ran.stderr
    assert submitted(environment) == []


def names(stderr: str, number: int, field: str, reason: str) -> bool:
    """Whether one line of stderr names this fault."""
    start = f"line {number}: {field}: " if field else f"line {number}: "
    return any(text.startswith(start) and reason in text for text in stderr.splitlines())


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_line_is_named_with_its_number_field_and_reason(
    name: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """One bad line refuses the file: exit 2, one fault with line, field and reason, no prompt, nothing submitted."""
    bad, field, reason = FAULTS[name]
    (tmp_path / "jobs.jsonl").write_bytes(b"\n".join([GOOD, b"", bad]) + b"\n")
    ran = offload(environment, "submit", str(tmp_path / "jobs.jsonl"))
    assert_refused(ran, environment)
    assert names(ran.stderr, 3, field, reason), ran.stderr
    assert "1 fault in 1 line; nothing was submitted" in ran.stderr


def test_all_faults_of_all_lines_are_shown_at_once(environment: dict[str, str]) -> None:
    """A file with every fault there is shows each of them in one go, several of one line included."""
    bad = [raw for raw, _, _ in FAULTS.values()]
    twice = line(temperature="warm", max_tokens=0)
    ran = offload(environment, "submit", "-", stdin=b"\n".join([GOOD, *bad, twice]))
    assert_refused(ran, environment)
    for number, (_, field, reason) in enumerate(FAULTS.values(), start=2):
        assert names(ran.stderr, number, field, reason), (number, field, reason)
    last = len(FAULTS) + 2
    assert names(ran.stderr, last, "temperature", "")
    assert names(ran.stderr, last, "max_tokens", "")
    assert f"{len(FAULTS) + 2} faults in {len(FAULTS) + 1} lines" in ran.stderr


@pytest.mark.parametrize(
    "content", [b"", b"\n", b" \n\t\r\n\n", b"\xef\xbb\xbf"], ids=["empty", "line", "blank", "bom"]
)
def test_a_file_without_jobs_is_refused(content: bytes, environment: dict[str, str], tmp_path: Path) -> None:
    """A file with nothing in it is a mistake, not a batch of nothing."""
    (tmp_path / "jobs.jsonl").write_bytes(content)
    ran = offload(environment, "submit", str(tmp_path / "jobs.jsonl"))
    assert_refused(ran, environment)
    assert "the input is empty" in ran.stderr


def test_a_directory_and_a_missing_file_are_named(environment: dict[str, str], tmp_path: Path) -> None:
    """What cannot be read is named with the reason."""
    ran = offload(environment, "submit", str(tmp_path))
    assert_refused(ran, environment)
    assert f"{tmp_path}: is a directory" in ran.stderr
    ran = offload(environment, "submit", str(tmp_path / "none.jsonl"))
    assert_refused(ran, environment)
    assert "none.jsonl: cannot be read (No such file or directory)" in ran.stderr


@pytest.mark.slow
def test_a_line_of_200_mb_is_refused_in_bounded_memory(environment: dict[str, str], tmp_path: Path) -> None:
    """A line far too long is one fault of its number; neither it nor what follows is held in memory whole."""
    path = tmp_path / "jobs.jsonl"
    with path.open("wb") as file:
        file.write(GOOD + b'\n{"category": "summarize", "prompt": "')
        file.seek(200 << 20, os.SEEK_CUR)  # sparse: it takes no disk
        file.write(b'"}\n' + line(category="sumarize") + b"\n")
    tracemalloc.start()
    try:
        ran = offload(environment, "submit", str(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert_refused(ran, environment)
    assert names(ran.stderr, 2, "", "is longer than 16 MiB")
    assert names(ran.stderr, 3, "category", "did you mean")
    assert peak < 80 << 20, "the line was held in memory"


def test_skip_invalid_submits_the_rest_and_keeps_the_bad_lines(environment: dict[str, str], tmp_path: Path) -> None:
    """--skip-invalid: good lines become a batch, bad ones stand in FILE.rejected as they were."""
    path = tmp_path / "jobs.jsonl"
    bad = [raw for raw, _, _ in FAULTS.values()]
    path.write_bytes(b"\n".join([GOOD, *bad, line(id="last")]))
    ran = offload(environment, "submit", str(path), "--skip-invalid", "--json")
    assert ran.code == 0, ran.stderr
    assert (ran.json["jobs"], ran.json["rejected"]) == (2, len(bad))
    rejected = tmp_path / "jobs.jsonl.rejected"
    assert rejected.read_bytes() == b"\n".join(bad) + b"\n"
    assert str(rejected) in ran.stderr
    assert SECRET not in ran.stderr
    assert submitted(environment)[0]["total"] == 2

    rejected.write_bytes(b"mine")
    assert offload(environment, "submit", str(path), "--skip-invalid").code == 0
    assert rejected.read_bytes() == b"mine"
    assert (tmp_path / "jobs.jsonl.rejected.1").read_bytes() == b"\n".join(bad) + b"\n"


def test_skip_invalid_with_no_valid_line_submits_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    """A batch of nothing is not submitted, even when bad lines may be skipped."""
    (tmp_path / "jobs.jsonl").write_bytes(line(category="sumarize"))
    assert_refused(offload(environment, "submit", str(tmp_path / "jobs.jsonl"), "--skip-invalid"), environment)


def test_files_as_other_systems_write_them_are_read(environment: dict[str, str], tmp_path: Path) -> None:
    """A byte order mark, CRLF, blank lines and a last line without an end change nothing."""
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line(id="a") + b"\r\n\r\n" + line(id="b") + b"\r\n" + openai_line())
    ran = offload(environment, "submit", str(path), "--json")
    assert ran.code == 0, ran.stderr
    assert ran.json["jobs"] == 3


def test_the_category_option_is_for_lines_that_name_none(environment: dict[str, str]) -> None:
    """--category fills in what a line leaves out, overrides nothing, and is checked itself."""
    jobs = jsonl([{"prompt": SECRET}, {"prompt": SECRET, "category": "code"}])
    batch = offload(environment, "submit", "-", "--category", "classify", stdin=jobs).text
    categories = offload(environment, "status", batch, "--json").json["categories"]
    assert {c["category"] for c in categories} == {"classify", "code"}
    ran = offload(environment, "submit", "-", "--category", "clasify", stdin=jobs)
    assert ran.code == 2
    assert "did you mean 'classify'?" in ran.stderr


def test_an_idempotency_key_makes_a_repeated_submit_the_same_batch(environment: dict[str, str]) -> None:
    """The same key and body give the same id; the same key with another body is a conflict, exit 2."""
    first = offload(environment, "submit", "-", "--idempotency-key", "k", "--json", stdin=GOOD).json
    again = offload(environment, "submit", "-", "--idempotency-key", "k", "--json", stdin=GOOD).json
    assert first["id"] == again["id"]
    assert (first["new"], again["new"]) == (True, False)
    other = offload(environment, "submit", "-", "--idempotency-key", "k", stdin=line(id="other"))
    assert other.code == 2
    assert "another body" in other.stderr
    assert len(submitted(environment)) == 1


def test_submitting_while_the_pool_is_down_works_and_says_so(environment: dict[str, str]) -> None:
    """Without a pool the jobs wait, the person is told, and status says why."""
    ran = offload(environment, "submit", "-", stdin=GOOD)
    assert ran.code == 0
    assert "the jobs wait in the ledger" in ran.stderr
    assert "the pool is not running: offload up" in offload(environment, "status", ran.text).text
    assert offload(environment, "status", ran.text, "--json").json["waiting"] == {
        "small": "the pool is not running: offload up"
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "sumarize", SECRET), "did you mean 'summarize'?"),
        (("run", "summarize", " "), "prompt: is empty"),
        (("run", "summarize", "-"), "prompt: is empty"),
        (("run", "summarize", SECRET, "--model", "gemma3:5b"), "did you mean 'gemma3:4b'?"),
        (("run", "summarize", SECRET, "--schema", "none.json"), "none.json: cannot be read"),
        (("run", "summarize", SECRET, "--json", "--format", "yaml"), "'yaml'"),
        (("submit", "-", "-o", "out.jsonl"), "need --wait"),
        (("submit", "-", "--wait", "-o", "/nowhere/out.jsonl"), "cannot be written"),
        (("subm", "-"), "did you mean 'submit'?"),
        (("submit", "-", "--wiat"), "--wait"),
        (("wait",), "ID"),
        (("results", "x", "--state", "running"), "running"),
        (("batches", "--limit", "0"), "limit"),
        (("up", "--json"), "--detach"),
        (("worker", "--provider", "smi"), "no provider is named 'smi'"),
        (("worker", "--provider", "sim", "--serves", "smal"), "does not serve smal"),
        (("simulate", "--fault", "500"), "NAME:RATE"),
        (("simulate", "--port", "65536"), "0<=x<=65535"),
        (("wait", "x", "--timeout", "nan"), "nan is no number"),
        (("prune", "--days", "nan"), "nan is no number"),
        (("service", "install", "--for", "linux", "--to", "/dev/null"), "cannot be written (Not a directory)"),
        (("worker", "--provider", "sim", "--node", "a/b"), "letters, digits"),
        (("worker", "--provider", "sim", "--node", "a\n"), "letters, digits"),
        (("submit", "-", "--name", "n" * 201), "200 characters at most"),
        (("submit", "-", "--idempotency-key", ""), "1 to 200 characters"),
        (("submit", "x" * 5000), "cannot be read (File name too long)"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_2_and_says_what_is_wrong(
    arguments: tuple[str, ...], words: str, environment: dict[str, str]
) -> None:
    """Wrong usage ends with 2, says what was wrong, and leaves no batch."""
    ran = offload(environment, *arguments)
    assert words in ran.stderr
    assert_refused(ran, environment)


@pytest.mark.parametrize("command", ["status", "wait", "results", "cancel"])
def test_an_unknown_batch_is_exit_5(command: str, environment: dict[str, str]) -> None:
    """A batch that is not there is `not found`, with the command that lists those that are."""
    ran = offload(environment, command, "batch_0")
    assert ran.code == 5
    assert ran.stdout == b""
    assert "offload batches" in ran.stderr


def test_a_broken_place_is_exit_1(environment: dict[str, str], tmp_path: Path) -> None:
    """A ledger that cannot be opened and roles without a Redis are the pool's trouble, not the input's: exit 1."""
    elsewhere = environment | {"OFFLOAD_DATABASE_URL": f"sqlite:///{tmp_path}"}
    ran = offload(elsewhere, "batches")
    assert ran.code == 1
    assert str(tmp_path) in ran.stderr
    for role in (("worker", "--provider", "sim"), ("beat",)):
        ran = offload(environment, *role)
        assert ran.code == 1
        assert "offload up" in ran.stderr


def test_the_environment_is_checked(environment: dict[str, str]) -> None:
    """A setting of the wrong kind is exit 2 and named by its variable."""
    ran = offload(environment | {"OFFLOAD_DRAIN_S": "soon"}, "batches")
    assert ran.code == 2
    assert "OFFLOAD_DRAIN_S" in ran.stderr
    ran = offload(environment | {"OFFLOAD_DATABASE_URL": "mysql://u:hunter2@h/d"}, "batches")
    assert ran.code == 2
    assert "OFFLOAD_DATABASE_URL" in ran.stderr
    assert "hunter2" not in ran.stderr


def test_a_postgresql_that_is_not_there_is_named_without_its_password(environment: dict[str, str]) -> None:
    """An address that nobody answers at is exit 1 and one line."""
    ran = offload(environment | {"OFFLOAD_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/d"}, "batches")
    assert ran.code == 1
    assert "127.0.0.1:1/d cannot be opened" in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert "hunter2" not in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full", "/proc/self/mem"])
def test_an_input_without_an_end_is_refused(path: str, environment: dict[str, str]) -> None:
    """A device, or a file that opens and cannot be read, is no file of job lines."""
    if not Path(path).exists():
        pytest.skip(f"this machine has no {path}")
    ran = offload(environment, "submit", path)
    assert_refused(ran, environment)
    assert path in ran.stderr
    if Path(path).is_char_device():
        with Path(path).open("rb") as stdin:
            command = subprocess.run([EXECUTABLE, "submit", "-"], env=environment, stdin=stdin, timeout=30)
        assert command.returncode == 2


@pytest.mark.parametrize(
    "arguments", [("results", "x\udcff"), ("run", "summarize", "\udcff"), ("submit", "--name", "\udc80", "f")]
)
def test_a_command_line_that_is_not_utf8_is_refused(arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    """Bytes that are no text are said to be so, whatever the command."""
    ran = offload(environment, *arguments)
    assert ran.code == 2
    assert "not UTF-8" in ran.stderr


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("database or disk is full", "nothing was submitted; free space"),
        ("database is locked", "another process holds the ledger's lock"),
        ("file is not a database", "the ledger's file is no database"),
    ],
)
def test_the_ledgers_troubles_have_words(
    said: str, words: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What SQLite says is told as what a person can do, exit 1."""

    def fails(*_: Any, **__: Any) -> None:
        raise OperationalError("BEGIN", None, sqlite3.OperationalError(said))

    monkeypatch.setattr(loading, "begin", fails)
    ran = offload(environment, "submit", "-", stdin=GOOD)
    assert (ran.code, ran.stdout) == (1, b"")
    assert words in ran.stderr
