"""A file of job lines becomes a batch: read as a stream, twice.

The first pass finds every fault of every line and inserts nothing; the second inserts.  A pipe is spooled to disk
first.  Memory does not grow with the file.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, BinaryIO

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from api.use_cases.pool import Pool
from tasks.errors import InputError, LineFault, PoolError, UsageError
from tasks.ledger import reading
from tasks.ledger import submit as loading
from tasks.registry import Registry, nearest
from tasks.routing import NOTHING, Said
from tasks.schemas import MAX_LINE_BYTES, NewJob, parse_line

#: is told of every fault as it is found
OnFault = Callable[[LineFault], None]
#: is told how many lines a pass has read
OnProgress = Callable[[str, int], None]
#: called with a batch's id before the commit that makes the promise
OnOpening = Callable[[str], None]
#: called with the connection of that commit, and the batch's id
Beside = Callable[[Connection, str], None]
#: a deadline: seconds from the submit, or a moment, which has a zone
When = float | datetime


@dataclass(frozen=True)
class Submitted:
    """An acknowledged batch. new: False when an idempotency key named a batch that was there."""

    batch_id: str
    jobs: int
    rejected: int
    new: bool


@dataclass
class Request:
    """What to submit. said: for lines that say nothing themselves. rejects: where bad lines go; None refuses them all.

    deadline: when unfinished jobs expire. needs: batches whose end its jobs wait for. notify: its end is told, as the
    configuration may say of every batch. also: what else the idempotency key is used for. beside: what the commit that
    makes the promise writes as well, given the batch's id.
    """

    said: Said = NOTHING
    name: str | None = None
    key: str | None = None
    priority: int = 0
    needs: Sequence[str] = ()
    deadline: When = loading.DEFAULT_DEADLINE_S
    notify: bool = False
    rejects: Callable[[], BinaryIO] | None = None
    also: str = ""
    beside: Beside = field(default=lambda c, batch_id: None)
    on_fault: OnFault = field(default=lambda fault: None)
    on_progress: OnProgress = field(default=lambda what, lines: None)
    on_opening: OnOpening = field(default=lambda batch_id: None)


def submit(pool: Pool, source: BinaryIO, request: Request) -> Submitted:
    """Validate all of a seekable file, then insert it; the return is the promise.

    Raises InputError when there are faults and no place for bad lines, or when nothing valid is left; NotFound for a
    batch to wait for that is not there.
    """
    for needed in request.needs:  # before a long file is read
        reading.batch(pool.db, needed)
    if request.said.category is not None:
        _check_category(pool.registry, request.said.category)
    first = _Pass(pool.registry, request, source)
    with ExitStack() as stack:
        first.rejects = _LazyFile(request.rejects, stack)
        good = sum(1 for _ in first.jobs("checked"))
    if first.faults and (request.rejects is None or not good):
        bad = f"{first.faults} fault{'s' * (first.faults != 1)} in {first.bad} line{'s' * (first.bad != 1)}"
        raise InputError([LineFault(0, "", f"{bad}; nothing was submitted")])
    if not good:
        raise InputError([LineFault(0, "", "the input is empty; nothing was submitted")])
    digest = first.digest()
    batch_id, new = loading.begin(
        pool.db,
        name=request.name,
        priority=request.priority,
        key=request.key,
        body_hash=_asked(request, digest),
        deadline_s=seconds_to(request.deadline),
        needs=request.needs,
        notify=request.notify or pool.registry.notify.batch_done,
    )
    if new:
        _load(pool, source, request, batch_id, digest)
    return Submitted(batch_id, good, first.bad, new)


def submit_line(
    pool: Pool,
    line: bytes,
    *,
    name: str | None,
    priority: int,
    said: Said = NOTHING,
    deadline: When = loading.DEFAULT_DEADLINE_S,
    on_opening: OnOpening = lambda batch_id: None,
) -> str:
    """Submit one job; raises InputError with its faults. Returns the batch's id."""
    job = parse_line(line, 1, pool.registry, said)
    if isinstance(job, list):
        raise InputError([LineFault(0, f.field, f.reason) for f in job])
    batch_id, _ = loading.begin(pool.db, name=name, priority=priority, deadline_s=seconds_to(deadline))
    added = loading.add(pool.db, batch_id, [job], priority)
    on_opening(batch_id)
    loading.open_batch(pool.db, batch_id, added)
    return batch_id


def seconds_to(deadline: When) -> float:
    """Seconds from now to a deadline; raises UsageError where it has passed, while a pipe was read, say."""
    if not isinstance(deadline, datetime):
        return deadline
    left_s = (deadline - datetime.now(UTC)).total_seconds()
    if left_s < 0:
        raise UsageError("the deadline has passed meanwhile; nothing was submitted")
    return left_s


def _check_category(registry: Registry, category: str) -> None:
    if category not in registry.categories:
        raise InputError(
            [
                LineFault(
                    0,
                    "--category",
                    f"unknown category {category[:40]!r}" + nearest(category, list(registry.categories)),
                )
            ]
        )


def _load(pool: Pool, source: BinaryIO, request: Request, batch_id: str, digest: str) -> None:
    quiet = Request(said=request.said, on_progress=request.on_progress)
    second = _Pass(pool.registry, quiet, source)
    try:
        added = loading.add(pool.db, batch_id, second.jobs("stored"), request.priority)
        if second.digest() != digest:
            raise PoolError("the file changed while it was read; nothing was submitted")
        request.on_opening(batch_id)
        loading.open_batch(pool.db, batch_id, added, lambda c: request.beside(c, batch_id))
    except BaseException:  # Ctrl-C too: half a batch never stays
        with suppress(SQLAlchemyError):  # a disk that is full: the sweep drops it later
            loading.drop_loading(pool.db, batch_id)
        raise


def _asked(request: Request, lines: str) -> str:
    """What an idempotency key is used for: the lines, and all that was said of them but a name for people.

    A span that is said again is the same deadline; so is a moment.
    """
    deadline = request.deadline
    when = deadline.astimezone(UTC).isoformat() if isinstance(deadline, datetime) else float(deadline)
    said: tuple[Any, ...] = (lines, request.priority, sorted(set(request.needs)), when)
    if request.also:
        said = (*said, request.also)
    return hashlib.blake2b(repr(said).encode(), digest_size=16).hexdigest()


def _without_time(said: Said) -> Said:
    """What an idempotency key was used for: consent given again is the same consent."""
    return said if said.consent is None else replace(said, consent=replace(said.consent, at=""))


class _LazyFile:
    """Bad lines, in a file that is made with the first of them."""

    def __init__(self, make: Callable[[], BinaryIO] | None, stack: ExitStack) -> None:
        self._make = make
        self._stack = stack
        self._file: BinaryIO | None = None

    def write(self, line: bytes) -> None:
        if self._make is None:
            return
        if self._file is None:
            self._file = self._stack.enter_context(self._make())
        self._file.write(line)


class _Pass:
    """One reading of the whole file."""

    def __init__(self, registry: Registry, request: Request, source: BinaryIO) -> None:
        self.faults = 0
        self.bad = 0
        self.rejects: _LazyFile | None = None
        self._registry = registry
        self._request = request
        self._source = source
        self._hash = hashlib.blake2b(repr(_without_time(request.said)).encode(), digest_size=16)

    def jobs(self, what: str) -> Iterator[NewJob]:
        """The valid jobs; faults are reported and counted as they are met."""
        self._source.seek(0)
        with seen_ids() as first_line:
            for number, raw in read_lines(self._source, self._rest_of_line):
                self._hash.update(raw)
                if number % 1000 == 0:
                    self._request.on_progress(what, number)
                job = self._job(raw, number, first_line)
                if isinstance(job, NewJob):
                    yield job
                else:
                    self._reject(raw, job)

    def digest(self) -> str:
        """What was read, for the idempotency key and against a file that changes."""
        return self._hash.hexdigest()

    def _job(self, raw: bytes, number: int, first_line: Callable[[str, int], int]) -> NewJob | list[LineFault]:
        if len(raw) > MAX_LINE_BYTES:
            return [LineFault(number, "", f"is longer than {MAX_LINE_BYTES >> 20} MiB")]
        job = parse_line(raw, number, self._registry, self._request.said)
        if isinstance(job, list):
            return job
        first = first_line(job.line_id, number)
        if first != number:
            return [LineFault(number, "id", f"the id was used in line {first} already")]
        return job

    def _reject(self, raw: bytes, faults: list[LineFault]) -> None:
        self.bad += 1
        self.faults += len(faults)
        for fault in faults:
            self._request.on_fault(fault)
        if self.rejects is not None:
            self.rejects.write(raw)

    def _rest_of_line(self, part: bytes) -> None:
        self._hash.update(part)
        if self.rejects is not None:
            self.rejects.write(part)


def read_lines(source: BinaryIO, rest: Callable[[bytes], None] = lambda part: None) -> Iterator[tuple[int, bytes]]:
    """(1-based number, bytes) of every line that is not blank; of a line too long, its first bytes only.

    `rest` is then given the others, piece by piece.
    """
    number = 0
    while raw := _read(source.readline, MAX_LINE_BYTES + 2):
        number += 1
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw.strip():
            yield number, raw
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            _read_rest(source, rest)


def _read_rest(source: BinaryIO, rest: Callable[[bytes], None]) -> None:
    while part := _read(source.readline, 1 << 20):
        rest(part)
        if part.endswith(b"\n"):
            return


def _read(read: Callable[[int], bytes], size: int) -> bytes:
    try:
        return read(size)
    except OSError as error:  # a disk that fails, a mount that is gone
        raise InputError([LineFault(0, "", f"the input cannot be read ({error.strerror})")]) from None


@contextmanager
def seen_ids() -> Iterator[Callable[[str, int], int]]:
    """A function (id, line) -> the line that used the id first; on disk, so that a million ids need no memory."""
    with tempfile.TemporaryDirectory(prefix="offload-") as folder:
        db = sqlite3.connect(Path(folder) / "ids.db", isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID")
        db.execute("BEGIN")

        def first_line(line_id: str, number: int) -> int:
            added = db.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (line_id, number))
            if added.rowcount:
                return number
            return int(db.execute("SELECT line FROM ids WHERE id = ?", (line_id,)).fetchone()[0])

        try:
            yield first_line
        finally:
            db.close()


@contextmanager
def opened(name: str, stdin: IO[bytes]) -> Iterator[Any]:
    """The input as a seekable file: a path, or `-` for standard input, spooled to disk first."""
    with ExitStack() as stack:
        file = stdin if name == "-" else stack.enter_context(_opened(name))
        if _has_no_end(file):
            raise InputError([LineFault(0, name, "is a device, which may have no end; name a file of job lines")])
        if name == "-" or not file.seekable():  # a named pipe, a terminal
            spool = stack.enter_context(tempfile.TemporaryFile(prefix="offload-"))
            while part := _read(file.read, 1 << 20):
                spool.write(part)
            file = spool
        yield file


@contextmanager
def _opened(name: str) -> Iterator[IO[bytes]]:
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(name).open("rb"))
            file.peek(1)  # some files open and cannot be read
        except IsADirectoryError:
            raise InputError([LineFault(0, name, "is a directory; name a file of job lines")]) from None
        except OSError as error:
            raise InputError([LineFault(0, name, f"cannot be read ({error.strerror})")]) from None
        yield file


def _has_no_end(file: IO[bytes]) -> bool:
    """Whether it is a device that is neither a terminal nor /dev/null."""
    try:
        found = os.fstat(file.fileno())
    except OSError:  # bytes in memory
        return False
    return stat.S_ISCHR(found.st_mode) and not file.isatty() and found.st_rdev != Path(os.devnull).stat().st_rdev
