"""Where a fan-out's inputs come from: files, folders, lines, rows, agents.

A folder is read as git would: what .gitignore leaves out, links and files that are no text are no inputs.  Whatever
else cannot be read is a fault, before anything is submitted.
"""

from __future__ import annotations

import csv
import glob
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

import orjson
from pathspec import GitIgnoreSpec
from pydantic import Field, ValidationError

from api.use_cases.submitting import opened, read_lines
from tasks.errors import InputError, LineFault
from tasks.fanning import Agent, Item
from tasks.placeholders import read
from tasks.privacy import Markers, Tier, tightest
from tasks.providers import Strict
from tasks.registry import nearest
from tasks.yaml_text import faults, keys, read_text, understood

#: bytes of one file: far more than anybody lets a model read
MOST_FILE = 16 * 1024 * 1024
#: what a path means to glob
_GLOB = "*?["
#: git's own folder, which no .gitignore names
GIT = ".git"


class AgentsFile(Strict):
    """agents.yaml."""

    agents: tuple[Agent, ...] = Field(min_length=1)


# --- files ------------------------------------------------------------------------------------------------


def files(given: Sequence[str], skipped: Callable[[Path], None]) -> Iterator[Path]:
    """The files that paths, globs and folders name, each once. skipped: told of those in folders that are no text."""
    seen: set[Path] = set()
    for name in given:
        before = len(seen)
        for path in _named(name, skipped):
            if path not in seen:
                seen.add(path)
                yield path
        if len(seen) == before and not any(_named(name, lambda path: None)):
            raise _fault(name, "holds no text that .gitignore does not leave out" if Path(name).is_dir() else _NONE)


_NONE = "there is no such file"
_NO_TEXT = "is no text (UTF-8 without NUL)"


def _named(name: str, skipped: Callable[[Path], None]) -> Iterator[Path]:
    try:
        yield from _found(name, skipped)
    except OSError as error:
        raise _fault(name, f"cannot be read ({error.strerror})") from None


def _found(name: str, skipped: Callable[[Path], None]) -> Iterator[Path]:
    path = Path(name)
    if path.is_dir():
        for found in walk(path):
            if _text(found) is None:
                skipped(found)
            else:
                yield found
    elif path.exists():
        yield path
    elif any(c in name for c in _GLOB):
        yield from (Path(found) for found in sorted(glob.glob(name, recursive=True)) if Path(found).is_file())


def walk(folder: Path) -> Iterator[Path]:
    """The files of a folder and those below it that git would not ignore, in order; links are not followed."""
    yield from _walked(folder, _above(folder.resolve()))


def _walked(folder: Path, rules: list[tuple[Path, GitIgnoreSpec]]) -> Iterator[Path]:
    rules = [*rules, *_rules_in(folder)]
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise _fault(str(folder), f"cannot be read ({error.strerror})") from None
    for entry in entries:
        path = folder / entry.name
        if entry.is_symlink() or entry.name == GIT or _is_ignored(path, entry.is_dir(), rules):
            continue
        if entry.is_dir():
            yield from _walked(path, rules)
        elif entry.is_file():
            yield path


def _above(folder: Path) -> list[tuple[Path, GitIgnoreSpec]]:
    """What the repository's folders above this one leave out, from its top on; nothing outside a repository."""
    top = next((f for f in (folder, *folder.parents) if (f / GIT).exists()), None)
    if top is None:
        return []
    between = [f for f in (*reversed(folder.parents), folder) if f == top or top in f.parents]
    exclude = _rules(top, top / GIT / "info" / "exclude")
    return [*exclude, *chain.from_iterable(_rules_in(f) for f in between[:-1])]


def _rules_in(folder: Path) -> list[tuple[Path, GitIgnoreSpec]]:
    return _rules(folder.resolve(), folder / ".gitignore")


def _rules(base: Path, file: Path) -> list[tuple[Path, GitIgnoreSpec]]:
    try:
        if not file.is_file():
            return []
        lines = file.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [(base, GitIgnoreSpec.from_lines(lines))]


def _is_ignored(path: Path, is_folder: bool, rules: list[tuple[Path, GitIgnoreSpec]]) -> bool:
    """What the nearest rule says that says anything."""
    whole = path.parent.resolve() / path.name
    for base, spec in reversed(rules):
        found = spec.check_file(whole.relative_to(base).as_posix() + "/" * is_folder)
        if found.include is not None:
            return found.include
    return False


def file_item(path: Path, markers: Markers, overruled: bool) -> Item:
    """A file as an input; raises InputError where it is no text. overruled: a person consents to what detectors find.

    Its job touches the path as it was given.
    """
    content = _text(path)
    if content is None:
        raise _fault(str(path), _NO_TEXT)
    if not _is_utf8(str(path)):
        raise _fault(str(path), "has a name that is no UTF-8")
    values = {"path": str(path), "content": content}
    return Item(str(path), values, (str(path),), None if overruled else folder_tier(path, markers))


def piped_item(stdin: IO[bytes]) -> Item:
    """Standard input as an input, which touches nothing; raises InputError where it is no text."""
    content = _decoded_file("-", stdin.read(MOST_FILE + 1))
    if content is None:
        raise _fault("-", _NO_TEXT)
    return Item("-", {"path": "-", "content": content})


def _is_utf8(name: str) -> bool:
    """Whether a name of the system's can be written: Python keeps other bytes of it as halves of characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def folder_tier(path: Path, markers: Markers) -> Tier | None:
    """What a private folder tightens a file to that is given by another name than the folder is marked by."""
    return tightest(*markers.found("", (str(path.absolute()), str(path.resolve()))).values())


def _text(path: Path) -> str | None:
    """A file's text; None where it is none. A device may have no end, and a pipe nobody who writes."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _fault(str(path), "is no regular file")
        with path.open("rb") as file:
            return _decoded_file(str(path), file.read(MOST_FILE + 1))
    except OSError as error:
        raise _fault(str(path), f"cannot be read ({error.strerror})") from None


def _decoded_file(name: str, raw: bytes) -> str | None:
    if len(raw) > MOST_FILE:
        raise _fault(name, f"is larger than {MOST_FILE >> 20} MiB")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


# --- lines and rows ---------------------------------------------------------------------------------------


def lines(name: str, stdin: IO[bytes]) -> Iterator[Item]:
    """The lines of a file that are not blank; `-` is standard input."""
    with _read_anew(name, stdin) as source:
        for number, raw in read_lines(source):
            yield Item(str(number), {"line": _decoded(name, number, raw).rstrip("\r\n")}, _touched(name))


def jsonl(name: str, stdin: IO[bytes]) -> Iterator[Item]:
    """The objects of a JSONL file, their keys the placeholders."""
    with _read_anew(name, stdin) as source:
        for number, raw in read_lines(source):
            try:
                row = orjson.loads(raw)
            except orjson.JSONDecodeError as error:
                raise _line_fault(name, number, f"is not JSON (column {error.colno}: {error.msg})") from None
            if not isinstance(row, dict):
                raise _line_fault(name, number, "is not a JSON object")
            yield Item(str(number), {key: _plain(value) for key, value in row.items()}, _touched(name))


def rows(name: str, stdin: IO[bytes]) -> Iterator[Item]:
    """The rows of a CSV file, the columns of its first line the placeholders."""
    with _read_anew(name, stdin) as source:
        try:
            text = io.TextIOWrapper(source, encoding="utf-8-sig", newline="")
            reader = csv.DictReader(text, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    columns = len(reader.fieldnames or ())
                    raise _line_fault(name, reader.line_num, f"has not the {columns} columns of line 1")
                yield Item(str(reader.line_num), dict(row), _touched(name))
            text.detach()
        except UnicodeDecodeError:
            raise _fault(name, "is not UTF-8") from None
        except csv.Error as error:
            raise _line_fault(name, reader.line_num, f"is no CSV ({error})") from None


def with_placeholders(items: Iterator[Item], prompt: str) -> tuple[list[str], Iterator[Item]]:
    """The placeholders that the first item has, and all items; one that lacks what the prompt asks for is a fault."""
    first = next(items, None)
    if first is None:
        raise InputError([LineFault(0, "", "the input is empty; nothing was submitted")])
    return list(first.values), _checked(read(prompt, first.values, "the prompt").names, chain([first], items))


def _checked(needed: frozenset[str], items: Iterator[Item]) -> Iterator[Item]:
    for item in items:
        if missing := needed - item.values.keys():
            raise InputError([LineFault(0, f"line {item.name}", f"lacks {', '.join(sorted(missing))[:80]}")])
        yield item


@contextmanager
def _read_anew(name: str, stdin: IO[bytes]) -> Iterator[Any]:
    with opened(name, stdin) as source:
        source.seek(0)
        yield source


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _touched(name: str) -> tuple[str, ...]:
    return () if name == "-" else (name,)


def _decoded(name: str, number: int, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _line_fault(name, number, "is not UTF-8") from None


def _line_fault(name: str, number: int, reason: str) -> InputError:
    return InputError([LineFault(number, name, reason)])


def _fault(name: str, reason: str) -> InputError:
    return InputError([LineFault(0, name, reason)])


# --- agents -----------------------------------------------------------------------------------------------


def agents(path: Path) -> tuple[Agent, ...]:
    """The agents that a file describes; raises ConfigError with file, line and field."""

    def read(data: dict[str, Any]) -> AgentsFile:
        try:
            return AgentsFile.model_validate(data)
        except ValidationError as error:
            raise ExceptionGroup(str(path), faults(error, (), _nearest_key)) from None

    return understood(read_text(path), str(path), "agents", read).agents


def _nearest_key(way: tuple[str | int, ...]) -> str:
    return nearest(str(way[-1]), keys(Agent if len(way) > 1 else AgentsFile))
