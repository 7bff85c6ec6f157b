"""The command line as a test calls it: in this process, or as the real executable."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.commands import run_cli
from tests.support.waiting import eventually

#: the command that `make setup` installs
EXECUTABLE = str(Path(sys.executable).with_name("offload"))


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        """stdout as text, without the line end."""
        return self.stdout.decode().rstrip("\n")

    @property
    def json(self) -> Any:
        """stdout as the one JSON document it has to be."""
        return json.loads(self.stdout)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """stdout as JSONL."""
        return [json.loads(line) for line in self.stdout.splitlines()]


def offload(environment: Mapping[str, str], *arguments: str, stdin: bytes = b"") -> Ran:
    """Run `offload ARGUMENTS` in this process: the executable's own code, without Python's start."""
    return here(environment, run_cli, *arguments, stdin=stdin)


def here(
    environment: Mapping[str, str], command: Callable[[Sequence[str]], int], *arguments: str, stdin: bytes = b""
) -> Ran:
    """Run a command's own code in this process."""
    out, err = _stream(), _stream()
    with _replaced(environment, _stream(stdin), out, err):
        code = command(arguments)
        out.flush()
    return Ran(code, out.buffer.getvalue(), err.buffer.getvalue().decode())  # type: ignore[attr-defined]


def _stream(content: bytes = b"") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", write_through=True)


@contextmanager
def _replaced(environment: Mapping[str, str], *streams: io.TextIOWrapper) -> Iterator[None]:
    before, before_streams = dict(os.environ), (sys.stdin, sys.stdout, sys.stderr)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin, sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = before_streams
        os.environ.clear()
        os.environ.update(before)


def examined(cli: Callable[..., Ran], *arguments: str, broken: Sequence[str] = ()) -> Ran:
    """What doctor says once these checks are broken and no others: on a busy machine a tick may be late at one look."""
    looks: list[Ran] = []

    def as_wanted() -> bool:
        looks.append(cli("doctor", *arguments))
        return _broken(looks[-1]) == [*broken]

    with suppress(AssertionError):
        eventually(as_wanted, "doctor finds what is wanted")
    assert _broken(looks[-1]) == [*broken], looks[-1].text
    assert looks[-1].code == bool(broken)
    return looks[-1]


def _broken(ran: Ran) -> list[str]:
    found = [text for text in ran.text.splitlines() if text.startswith("BROKEN")]
    return [text.removeprefix("BROKEN  ").partition(":")[0] for text in found]


def executable(environment: Mapping[str, str], *arguments: str, stdin: bytes = b"") -> Ran:
    """Run the real `offload` to its end."""
    done = subprocess.run(
        [EXECUTABLE, *arguments], env=dict(environment), input=stdin, capture_output=True, timeout=120
    )
    return Ran(done.returncode, done.stdout, done.stderr.decode())


def started(environment: Mapping[str, str], *arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
    """Start the real `offload`; the caller ends it."""
    return subprocess.Popen([EXECUTABLE, *arguments], env=dict(environment), **streams)


def jsonl(jobs: Iterable[Mapping[str, Any]]) -> bytes:
    """Job lines as a file has them."""
    return b"".join(json.dumps(job, ensure_ascii=False).encode() + b"\n" for job in jobs)
