"""The helpers' log as a file: where new lines begin, whatever was done to it, and what a line says.

A place in it is known by the last lines before it, not by a number: a log that was rotated (`LOG.1`, `LOG-20260101`;
renamed, or copied and emptied), or whose head was cut off, goes on where it was left.  What was emptied without a copy
is gone.  A line without its end is not there yet.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from tasks.rollups import hour_of
from tasks.routing import Decision
from tasks.states import JobState
from tasks.validation import clean

#: lines by which a place is known
TAIL = 8
#: bytes of a line; one that is longer is none of the helper's
MOST_BYTES = 64 * 1024
#: characters of a category and of a reason that are kept
MOST_WORDS = 200
#: exit codes of calls of which nothing was sent: disqualified, no healthy server
UNSENT = (10, 13)
#: exit code -> error of the call
ERRORS = {0: None, 11: "bad_json", 12: "helper_failed", 130: "closed"}
#: what their calls have for `app` and `provider`; which server it was the log does not say
APP, PROVIDER = "anchor-offload", "straight"


@dataclass(frozen=True)
class Place:
    """How far a log was read. tail: hashes of the last lines before `at`, which is in bytes."""

    at: int = 0
    tail: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Lines read together, and the place behind them."""

    lines: list[bytes]
    place: Place


def parts(path: Path, known: Place, read_at: float, most: int) -> Iterator[Part]:
    """What was not read yet, oldest first, at most so many lines at once. read_at: when it last was, unix seconds."""
    tail = known.tail
    for file, start in _unread(path, known, read_at):
        for part in _read(file, start, tail, most):
            tail = part.place.tail
            yield part


def _unread(path: Path, known: Place, read_at: float) -> list[tuple[Path, int]]:
    """Files and where to begin in each."""
    there = [(path, 0)] if path.is_file() else []
    rotated = _rotated(path)
    if not known.tail:
        return [*((file, 0) for file in rotated), *there]
    for i, file in enumerate([*there, *((file, 0) for file in reversed(rotated))]):
        start = _found(file[0], known)
        if start is not None:
            newer = rotated[len(rotated) - (i - len(there)) :] if i >= len(there) else []
            return [(file[0], start), *((one, 0) for one in newer), *(there if i >= len(there) else [])]
    return [*((file, 0) for file in rotated if file.stat().st_mtime > read_at), *there]


def _rotated(path: Path) -> list[Path]:
    """What logrotate and its like have made of it, the oldest first; compressed ones are not read."""
    name = re.compile(re.escape(path.name) + r"[.-]\d[\d.-]*")
    if not path.parent.is_dir():
        return []
    found = [file for file in path.parent.iterdir() if name.fullmatch(file.name) and file.is_file()]
    return sorted(found, key=lambda file: (file.stat().st_mtime, file.name))


def _found(file: Path, known: Place) -> int | None:
    """Where in a file the place is: behind the last lines that were read."""
    with file.open("rb") as opened:
        if _is_at(opened, known):
            return known.at
        opened.seek(0)
        last: deque[str] = deque(maxlen=len(known.tail))
        found, at = None, 0
        for line in _lines(opened):
            at += len(line)
            last.append(_hash(line))
            if tuple(last) == known.tail[-len(last) :]:  # of a file whose head was cut off, fewer are left
                found = at
        return found


def _is_at(opened: BinaryIO, known: Place) -> bool:
    start = max(0, known.at - (TAIL + 1) * MOST_BYTES)
    opened.seek(start)
    before = opened.read(known.at - start)
    lines = before.splitlines(keepends=True)[-len(known.tail) :]
    return len(before) == known.at - start and tuple(map(_hash, lines)) == known.tail


def _lines(opened: BinaryIO) -> Iterator[bytes]:
    """Whole lines, and pieces of such as are too long."""
    while line := opened.readline(MOST_BYTES):
        if not line.endswith(b"\n") and len(line) < MOST_BYTES:
            return
        yield line


def _read(file: Path, start: int, tail: Sequence[str], most: int) -> Iterator[Part]:
    last = deque(tail, maxlen=TAIL)
    with file.open("rb") as opened:
        opened.seek(start)
        lines = _lines(opened)
        while some := list(islice(lines, most)):
            start += sum(map(len, some))
            last.extend(map(_hash, some[-TAIL:]))
            yield Part(some, Place(start, tuple(last)))


def _hash(line: bytes) -> str:
    return blake2b(line, digest_size=8).hexdigest()


def call(line: bytes, node: str) -> dict[str, Any] | None:
    """A line as the columns of a call; None where it is none, or one whose call the pool itself has made."""
    try:
        said = json.loads(line)
        ended_at = datetime.strptime(said["ts"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
        duration_ms, code = float(said["duration_ms"]), int(said["exit_code"])
        category, reason = str(said["category"]), str(said["reason"])
        decision = Decision(said["decision"])
    except (ValueError, LookupError, TypeError, RecursionError, OverflowError):
        return None
    if said.get("pool") or not (math.isfinite(duration_ms) and 0 <= duration_ms < 1e12 and abs(code) < 2**31):
        return None
    sent = code not in UNSENT
    done = JobState.DONE if decision is Decision.OFFLOAD and code == 0 else None
    return {
        "job_id": 0,
        "batch_id": "",
        "fence": 0,
        "category": clean(category)[:MOST_WORDS],
        "model_class": "",
        "provider": PROVIDER if sent else "",
        "node": node,
        "model_asked": "",
        "started_at": ended_at - duration_ms / 1000,
        "duration_ms": duration_ms,
        "hour": hour_of(ended_at),
        "app": APP,
        "decision": decision.value,
        "reason": None if reason == "none" else clean(reason)[:MOST_WORDS],
        "attempt": 1,
        "sent": sent,
        "ended": JobState.ESCALATED.value if decision is Decision.ESCALATE else done,
        "exit_code": code,
        "error_code": ERRORS.get(code, f"exit_{code}") if sent else None,
    }
