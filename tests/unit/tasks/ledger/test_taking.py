"""What the helpers logged without a pool is in the ledger once, whatever was done to the log."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.helper_log import Place, parts
from tasks.ledger import rollups, taking
from tasks.rollups import hour_of
from tests.unit.ledgers import Ledger

LINE: dict[str, Any] = {
    "ts": "2026-04-08T02:43:34Z",
    "category": "classify",
    "decision": "offload",
    "reason": "none",
    "duration_ms": 476,
    "exit_code": 0,
}
#: the hour of LINE
HOUR = hour_of(1775616214.0)


class Log:
    """A log that helpers append to; every line says which it is."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "offload.jsonl"
        self.written = 0
        self.rotations = 0

    def append(self, n: int = 1, **said: Any) -> None:
        with self.path.open("a") as file:
            for _ in range(n):
                file.write(json.dumps(LINE | {"duration_ms": self.written} | said) + "\n")
                self.written += 1

    def rotate(self) -> None:
        """As logrotate does: LOG.1 becomes LOG.2, the log LOG.1."""
        for i in range(self.rotations, 0, -1):
            self._numbered(i).rename(self._numbered(i + 1))
        if self.path.exists():
            self.path.rename(self._numbered(1))
            self._older(self._numbered(1))
        else:
            self._numbered(1).touch()
            self._older(self._numbered(1))
        self.rotations += 1

    def copy_and_empty(self) -> None:
        """As logrotate's copytruncate does."""
        for i in range(self.rotations, 0, -1):
            self._numbered(i).rename(self._numbered(i + 1))
        self.path.touch()
        shutil.copy(self.path, self._numbered(1))
        self._older(self._numbered(1))
        self.path.write_bytes(b"")
        self.rotations += 1

    def cut_head(self) -> None:
        """Somebody keeps the last three lines."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        new = self.path.with_suffix(".new")
        new.write_bytes(b"".join(lines[-3:]))
        new.replace(self.path)

    def _numbered(self, i: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{i}")

    def _older(self, file: Path) -> None:
        """Files of one moment have times of one order."""
        os.utime(file, (1e9 + self.rotations, 1e9 + self.rotations))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """An empty one."""
    return Log(tmp_path)


def taken(ledger: Ledger) -> list[int]:
    """Which lines are in the ledger."""
    return [int(row.duration_ms) for row in ledger.calls(app="anchor-offload")]


def take_in(ledger: Ledger, log: Log) -> int:
    return taking.take_in(ledger.db, log.path, "here")


def rotated_twice(log: Log) -> None:
    log.rotate()
    log.append(2)
    log.rotate()


DONE: dict[str, Callable[[Log], None]] = {
    "nothing": lambda log: None,
    "rotated": Log.rotate,
    "rotated twice": rotated_twice,
    "copied and emptied": Log.copy_and_empty,
}


@pytest.mark.parametrize("done", DONE.values(), ids=DONE)
def test_a_line_is_taken_in_once(ledger: Ledger, log: Log, done: Callable[[Log], None]) -> None:
    """Lines of before and after, whatever was done to the log in between; a second look finds nothing."""
    log.append(10)
    assert take_in(ledger, log) == 10
    log.append(3)
    done(log)
    log.append(2)
    take_in(ledger, log)
    assert sorted(taken(ledger)) == list(range(log.written))
    assert take_in(ledger, log) == 0


def test_a_log_whose_head_was_cut_off_goes_on(ledger: Ledger, log: Log) -> None:
    """What is left of it was read already, and is not read again."""
    log.append(10)
    take_in(ledger, log)
    log.cut_head()
    assert take_in(ledger, log) == 0
    log.append(2)
    assert take_in(ledger, log) == 2


def test_a_log_that_was_emptied_begins_anew(ledger: Ledger, log: Log) -> None:
    """What was in it and not read is gone; what comes after is taken in."""
    log.append(5)
    take_in(ledger, log)
    log.path.write_bytes(b"")
    log.append(2)
    assert take_in(ledger, log) == 2
    assert sorted(taken(ledger)) == list(range(7))


def test_a_line_without_its_end_waits(ledger: Ledger, log: Log) -> None:
    """It is taken in once it is whole."""
    log.append()
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:40])
    assert take_in(ledger, log) == 0
    log.path.write_bytes(whole)
    assert take_in(ledger, log) == 1


def test_equal_lines_are_different_calls(ledger: Ledger, log: Log) -> None:
    """Two calls of one second that took equally long are two."""
    for _ in range(2):
        log.append(2, duration_ms=5)
        assert take_in(ledger, log) == 2


def test_without_a_log(ledger: Ledger, log: Log) -> None:
    """Nobody used the helpers: nothing is taken in, and nothing is wrong."""
    assert take_in(ledger, log) == 0


@pytest.mark.parametrize(
    "line",
    [b"\n", b"{}\n", b"[1]\n", b"no json\n", b'{"ts": 5}\n', b"\xff\xfe\n", b"[" * 5000 + b"\n", b"x" * 70_000 + b"\n"],
)
def test_a_line_that_is_none_is_passed_over(ledger: Ledger, log: Log, line: bytes) -> None:
    """Those around it are taken in."""
    log.append()
    with log.path.open("ab") as file:
        file.write(line)
    log.append(category="a\0b", reason="\ud800")
    assert take_in(ledger, log) == 2
    assert take_in(ledger, log) == 0


def test_two_at_once_take_in_once(ledger: Ledger, log: Log) -> None:
    """Of two that have read the same lines one writes them."""
    log.append(3)
    (part,) = parts(log.path, Place(), 0.0, 100)
    name = f"here:{log.path}"
    assert taking._take(ledger.db, name, "here", 0, part) == 3
    assert taking._take(ledger.db, name, "here", 0, part) is None
    assert take_in(ledger, log) == 0


def test_what_a_line_becomes(ledger: Ledger, log: Log) -> None:
    """Answered, disqualified, no JSON, no server; the pool's own calls are in the ledger already."""
    log.append(category="summarize")
    log.append(decision="escalate", reason="security path", exit_code=10)
    log.append(decision="escalate", reason="JSON validation failed", exit_code=11)
    log.append(decision="escalate", reason="model server unhealthy", exit_code=13)
    log.append(pool=True)
    assert take_in(ledger, log) == 4
    assert [(r.decision, r.ended, r.sent, r.error_code, r.exit_code, r.reason) for r in ledger.calls()] == [
        ("offload", "done", True, None, 0, None),
        ("escalate", "escalated", False, None, 10, "security path"),
        ("escalate", "escalated", True, "bad_json", 11, "JSON validation failed"),
        ("escalate", "escalated", False, None, 13, "model server unhealthy"),
    ]
    rollups.roll_up(ledger.db, HOUR)
    rows = rollups.of_hour(ledger.db, HOUR)
    assert {(r.decision, r.category, r.provider, r.calls, r.jobs_done, r.jobs_escalated) for r in rows} == {
        ("offload", "summarize", "straight", 1, 1, 0),
        ("escalate", "classify", "", 0, 0, 2),
        ("escalate", "classify", "straight", 1, 0, 1),
    }


steps = st.lists(st.sampled_from(["append", "append", "append many", "rotate", "copy", "cut", "read"]), max_size=14)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_a_log_is_read_once_whatever_is_done_to_it(tmp_path_factory: pytest.TempPathFactory, some: list[str]) -> None:
    """Every line once, in order, but for those that were cut off unread."""
    log = Log(tmp_path_factory.mktemp("log"))
    place, read_at, found, cut = Place(), 0.0, list[int](), False
    for step in [*some, "read"]:
        match step:
            case "append":
                log.append()
            case "append many":
                log.append(12)
            case "rotate":
                log.rotate()
            case "copy":
                log.copy_and_empty()
            case "cut" if found and len(found) == log.written:
                log.cut_head()
                cut = True
            case "read":
                for part in parts(log.path, place, read_at, 5):
                    place = part.place
                    found += [json.loads(line)["duration_ms"] for line in part.lines]
                read_at = 1e9 + log.rotations
    assert found == list(range(log.written)), cut
