"""The helpers' command lines, what passes as JSON, and the telemetry line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from api.helpers import telemetry
from api.helpers.answers import one_json
from api.helpers.arguments import ALL, NONE, ONE, parse
from tasks.errors import BadOutput, UsageError
from tasks.validation import check_json

OPTIONS = {"--touches": ALL, "--for": ONE, "--json": NONE}


@pytest.mark.parametrize(
    ("line", "words", "values"),
    [
        (["a", "b"], ["a", "b"], {}),
        (["--json", "a", "b"], ["a", "b"], {"--json": []}),
        (["a", "--json", "b"], ["a", "b"], {"--json": []}),
        (["a", "b", "--touches", "x", "y", "z"], ["a", "b"], {"--touches": ["x", "y", "z"]}),
        (["a", "b", "--touches", "x", "y", "--json"], ["a", "b"], {"--touches": ["x", "y"], "--json": []}),
        (["--touches", "x", "-y", "--", "a", "b"], ["a", "b"], {"--touches": ["x", "-y"]}),
        (["--touches=x", "a", "b"], ["a", "b"], {"--touches": ["x"]}),
        (["a", "--touches", "x", "--touches=y", "b"], ["a", "b"], {"--touches": ["x", "y"]}),
        (["--for", "human", "a", "b"], ["a", "b"], {"--for": ["human"]}),
        (["--for=human", "a", "b"], ["a", "b"], {"--for": ["human"]}),
        (["a", "--", "--json"], ["a", "--json"], {}),
        (["a", "--- old\n+++ new"], ["a", "--- old\n+++ new"], {}),
        (["a", "-- a comment"], ["a", "-- a comment"], {}),
        (["a", "-"], ["a", "-"], {}),
    ],
)
def test_a_command_line(line: list[str], words: list[str], values: dict[str, list[str]]) -> None:
    """Options stand anywhere before `--`; --touches takes all up to the next option; dashes may begin a prompt."""
    given = parse(line, OPTIONS)
    assert (given.words, given.values) == (words, values)


@pytest.mark.parametrize(
    "line",
    [["--touches"], ["--touches", "--json"], ["--touches", " "], ["--for"], ["--for", "--json"], ["--for="],
     ["--json=yes"], ["--jsno"], ["--touch", "x"]],
)  # fmt: skip
def test_a_wrong_command_line(line: list[str]) -> None:
    """An option without its value, with one too many, or that there is not, is a usage error."""
    with pytest.raises(UsageError):
        parse(line, OPTIONS)


ANSWERS = [
    "{}", ' {"a": [1, 2.5, null, true, "x"]} \n', "1", '"text"', "null", "```json\n{}\n```", "```\n[1]\n```",
    "```JSON\n[1]\n```  ", "", " ", "text", "{} {}", "{", "```json\n{}\n", "Here: ```json\n{}\n```", "NaN",
    "[Infinity]", '{"a": 1, "a": 2}', "1e400", str(2**64), str(2**64 - 1), str(-(2**63)), "9" * 5000,
    "[" * 150 + "]" * 150, "[" * 500 + "]" * 500, "[" * 100_000, "```python\n{}\n```", "\ufeff{}",
]  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_json_is_what_the_pool_takes(answer: str) -> None:
    """An answer is one JSON value for the helpers exactly where it is one for the pool, and the same value."""
    try:
        expected = check_json(answer, None)
    except BadOutput:
        assert one_json(answer) is None
        return
    bare = one_json(answer)
    assert bare is not None
    assert "```" not in bare
    assert json.loads(bare) == expected


def test_the_line_is_the_contracts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, their order, and how it is written are those of the contract's example; the file is its owner's alone."""
    monkeypatch.setenv("OFFLOAD_LOG", str(tmp_path / "log"))
    telemetry.append("classify", "offload", "none", 476.4, 0)
    line = (tmp_path / "log").read_text()
    example = (
        '{"ts":"2026-04-08T02:43:34Z","category":"classify","decision":"offload","reason":"none",'
        '"duration_ms":476,"exit_code":0}\n'
    )
    assert len(line) == len(example)
    assert line.partition('"category"')[2] == example.partition('"category"')[2]
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_log_that_cannot_be_written_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder, a full disk, a pipe that nobody reads: one line on stderr each, and no exception."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, Path("/dev/full"), tmp_path / "pipe", tmp_path / "no" / "where"):
        monkeypatch.setenv("OFFLOAD_LOG", str(path))
        telemetry.append("classify", "offload", "none", 1, 0)
        assert capsys.readouterr().err.count("\n") == 1


def test_lines_of_twenty_processes_stay_whole(tmp_path: Path) -> None:
    """Twenty processes that append at once leave every line of theirs, each whole."""
    program = (
        "from api.helpers import telemetry\nfor i in range(50): telemetry.append('c' * 500, 'offload', 'none', i, 0)"
    )
    environment = os.environ | {"OFFLOAD_LOG": str(tmp_path / "log")}
    running = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(20)]
    assert [process.wait(60) for process in running] == [0] * 20
    lines = [json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    assert sorted(line["duration_ms"] for line in lines) == sorted(list(range(50)) * 20)
