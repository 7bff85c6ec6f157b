"""What commands share: JSON and tables on stdout, words on stderr, progress where somebody watches."""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click
import orjson

from api.use_cases.watching import Progress

#: seconds between two progress lines where stderr is no terminal
LINE_EVERY_S = 10.0

#: characters of a command's first sentence in the help of its group
MOST_SAID = 1000

#: seconds; nobody waits longer than ten years
MOST_SECONDS = 10 * 365 * 24 * 3600.0


class Number(click.FloatRange):
    """A number within a range; NaN is within none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is no number", param, ctx)
        return number


class Seconds(Number):
    """A time that ends: zero or more, finite."""

    def __init__(self) -> None:
        super().__init__(min=0, max=MOST_SECONDS)


class Group(click.Group):
    """A group whose help gives each command's first sentence whole; click's own cuts it at the line's end."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            commands = sorted(self.commands.items())
            formatter.write_dl([(name, command.get_short_help_str(MOST_SAID)) for name, command in commands])


def say(text: str) -> None:
    """A word for the person."""
    print_text(text, err=True)


def print_text(text: str, *, err: bool = False) -> None:
    """Lines for a person, on stdout or stderr."""
    click.echo("\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n")), err=err)


def printable(text: str) -> str:
    """A text in which `?` stands for what is not printable: a stranger's name may tell a terminal what to do."""
    return "".join(c if c.isprintable() else "?" for c in text)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode())


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Aligned columns: text to the left, numbers to the right."""
    cells = [[_cell(v) for v in row] for row in rows]
    raw = [list(row) for row in cells]
    widths = [max(len(h), *(len(r[i]) for r in raw)) if raw else len(h) for i, h in enumerate(head)]
    right = [all(_is_number(r[i]) for r in raw) and bool(raw) for i in range(len(head))]
    lines = [list(head), *raw]
    return "\n".join(
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else printable(str(value))


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(",", "").replace(".", "").isdigit()


def seconds(value: float | None) -> str:
    """A duration as people write it."""
    if value is None:
        return "?"
    if value < 100:
        return f"{value:.0f} s"
    minutes, rest = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def describe(p: Progress) -> str:
    """One line of progress."""
    failed = p.total - p.counts["done"] - p.counts["escalated"] - (p.total - p.ended)
    parts = [f"{p.ended:,} of {p.total:,}"]
    if p.counts["escalated"]:
        parts.append(f"{p.counts['escalated']:,} escalated")
    if failed:
        parts.append(f"{failed:,} not done")
    if not p.over:
        parts.append(f"{p.rate:,.1f} jobs/s")
        parts.append(f"{seconds(p.left_s)} left" if p.left_s is not None else "time left unknown")
    return ", ".join(parts)


def show_progress(steps: Iterable[Progress]) -> Progress:
    """Show each step: a moving line on a terminal, else one line every LINE_EVERY_S; returns the last."""
    last: Progress | None = None
    with progress_line() as write:
        for last in steps:
            write(f"{last.batch_id}  {describe(last)}", last.over)
    assert last is not None  # a watch yields at least once
    return last


@contextmanager
def progress_line() -> Iterator[Callable[[str, bool], None]]:
    """Writes (text, whether it is the last): a moving line on a terminal, else one line every LINE_EVERY_S."""
    if sys.stderr.isatty():
        with _moving_line() as write:
            yield write
        return
    written = float("-inf")

    def write_line(text: str, final: bool) -> None:
        nonlocal written
        if final or time.monotonic() - written >= LINE_EVERY_S:
            written = time.monotonic()
            say(text)

    yield write_line


@contextmanager
def _moving_line() -> Iterator[Callable[[str, bool], None]]:
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("") as status:

        def write(text: str, final: bool) -> None:
            status.update(text)

        yield write
        final_text = str(status.status)
    if final_text:
        say(final_text)


@contextmanager
def result_file(path: str | None) -> Iterator[BinaryIO]:
    """Where results go: stdout for None or `-`, else a file that appears whole or not at all."""
    if path in (None, "-"):
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(str(path))
    if target.is_dir():
        raise click.UsageError(f"{path} is a directory")
    if not target.parent.is_dir():
        raise click.UsageError(f"there is no folder {target.parent}")
    if target.exists() and not target.is_file():  # /dev/null, a named pipe: no rename onto those
        with target.open("wb") as file:
            yield file
        return
    handle, partial = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        Path(partial).chmod(0o666 & ~_umask())
        Path(partial).replace(target)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def write_results(path: str | None, lines: Iterable[bytes], *, as_array: bool) -> None:
    """Write result lines: JSONL, or one JSON array."""
    before, between, after = (b"[\n", b",\n", b"\n]\n") if as_array else (b"", b"\n", b"\n")
    with result_file(path) as out:
        out.write(before)
        empty = True
        for line in lines:
            out.write(line if empty else between + line)
            empty = False
        out.write(after if as_array or not empty else b"")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_writable(path: str | None) -> None:
    """Find out before the work, not after it, that results cannot be written."""
    if path not in (None, "-"):
        target = Path(str(path))
        in_place = target.exists() and not target.is_file()  # /dev/null, a named pipe
        if target.is_dir() or not os.access(target if in_place else target.parent, os.W_OK):
            raise click.UsageError(f"{path} cannot be written")
