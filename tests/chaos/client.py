"""A producer that trusts nobody: it writes down what it submitted, what was promised, what it read and when."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.exc import DBAPIError

from api.use_cases.pool import Pool
from api.use_cases.submitting import Request, submit
from tasks.errors import BrokerDown, OffloadError
from tasks.ledger import endings, reading
from tasks.states import BatchState, JobState
from tasks.tables import Batch, Job

batches = Batch.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]

#: the stream submits so many jobs whenever fewer than LOW wait or run
BATCH, LOW = 48, 64


@dataclass
class Submission:
    """One batch as the client knows it. id: None while nothing was promised. texts: what each line asks, in order."""

    name: str
    strike: int
    texts: Sequence[str]
    id: str | None = None
    error: str = ""
    cancelled: bool = False
    was_read: bool = False


def prompt_hash(text: str) -> str:
    """What the simulator's log has for a prompt."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class History:
    """The client's own book, a file of its own; written before and after each act."""

    def __init__(self, path: Path) -> None:
        self._file = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._file.execute("PRAGMA synchronous=OFF")
        self._file.execute("PRAGMA journal_mode=WAL")
        self._file.execute("CREATE TABLE acts (at REAL, act TEXT, batch TEXT, strike INTEGER, detail TEXT)")
        self._file.execute("CREATE TABLE reads (batch TEXT, line TEXT, said TEXT, at REAL, PRIMARY KEY (batch, line))")
        self._lock = threading.Lock()
        self.submissions: list[Submission] = []
        self.contradictions: list[tuple[Submission, str]] = []

    def note(self, act: str, submission: Submission, detail: str = "") -> None:
        """Write down what is about to be done, or what came of it."""
        with self._lock:
            row = (time.time(), act, submission.id or submission.name, submission.strike, detail)
            self._file.execute("INSERT INTO acts VALUES (?, ?, ?, ?, ?)", row)

    def begin(self, submission: Submission) -> None:
        """A submit begins: nothing is promised yet."""
        with self._lock:
            self.submissions.append(submission)
        self.note("submit", submission, str(len(submission.texts)))

    def read(self, submission: Submission, results: Sequence[Mapping[str, Any]]) -> None:
        """Results were read; one that is not what was read before is a contradiction."""
        rows = []
        for line in results:
            said = json.dumps([line["state"], line["output"], line.get("error")], sort_keys=True)
            rows.append((submission.id, line["id"], hashlib.sha256(said.encode()).hexdigest(), time.time()))
        with self._lock:
            known = dict(
                self._file.execute("SELECT line, said FROM reads WHERE batch = ?", (submission.id,)).fetchall()
            )
            self.contradictions += [(submission, line) for _, line, said, _ in rows if known.get(line, said) != said]
            self._file.execute("BEGIN")
            self._file.executemany("INSERT OR IGNORE INTO reads VALUES (?, ?, ?, ?)", rows)
            self._file.execute("COMMIT")

    @property
    def promised(self) -> list[Submission]:
        """What was acknowledged."""
        return [s for s in list(self.submissions) if s.id is not None]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Client:
    """Submits, cancels and reads; `strike` is the number of the one under way."""

    def __init__(self, pool: Pool, folder: Path, word: str, look_s: float) -> None:
        self.pool = pool
        self.history = History(folder / "history.db")
        self.strike = 0
        self._word, self._look_s = word, look_s
        self._numbers = itertools.count(1)
        self._stopping = threading.Event()
        self._stream: threading.Thread | None = None

    def submit(
        self,
        n: int,
        category: str = "small",
        mark: str = "",
        pool: Pool | None = None,
        marked: int | None = None,
        **request: Any,
    ) -> Submission:
        """Submit n jobs, the first `marked` (all) with `mark` in their prompts; dispatch them; what came of it.

        Errors are in the submission, and whether anything was promised.
        """
        name = f"{self._word}-{next(self._numbers)}"
        few = n if marked is None else marked
        texts = [f"{name} line {i} of {n}. {mark if i < few else ''}".rstrip() for i in range(n)]
        return self.submit_texts(name, texts, category, pool, **request)

    def submit_texts(
        self, name: str, texts: Sequence[str], category: str, pool: Pool | None = None, **request: Any
    ) -> Submission:
        """Submit these prompts."""
        made = Submission(name, self.strike, texts)
        source = io.BytesIO(self.lines(texts, category, **request.pop("extra", {})))
        self.history.begin(made)
        through = pool or self.pool
        try:
            made.id = submit(through, source, Request(name=name, **({"key": name} | request))).batch_id
        except (OffloadError, DBAPIError) as error:
            made.error = f"{type(error).__name__}: {getattr(error, 'orig', None) or error}"
            self.history.note("failed", made, made.error)
            return made
        self.history.note("promised", made, name)
        self.dispatch(through)
        return made

    def lines(self, texts: Sequence[str], category: str, **extra: Any) -> bytes:
        """Job lines as a file has them."""
        lines = [{"id": f"j{i}", "category": category, "prompt": text, **extra} for i, text in enumerate(texts)]
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)

    def prepared(self, name: str, n: int) -> Submission:
        """What another process is about to submit under this name; nothing is promised."""
        made = Submission(name, self.strike, [f"{name} line {i}." for i in range(n)])
        self.history.begin(made)
        return made

    def dispatch(self, pool: Pool | None = None) -> bool:
        """What `submit` does after its promise; False where Redis or the ledger is away."""
        try:
            (pool or self.pool).dispatch()
        except (BrokerDown, DBAPIError):
            return False
        return True

    def prompt(self, batch_id: str, line: int) -> str:
        """How the simulator's log calls the prompt of a line, counted from 1."""
        found = (s for s in reversed(self.history.submissions) if s.id == batch_id)
        submission = next(found, None)
        return "" if submission is None else prompt_hash(submission.texts[line - 1])

    def cancel(self, submission: Submission) -> None:
        """Cancel a batch."""
        assert submission.id is not None
        submission.cancelled = True
        self.history.note("cancel", submission)
        endings.cancel(self.pool.db, submission.id)

    def results(self, submission: Submission) -> list[dict[str, Any]]:
        """Read a batch's results, and remember them."""
        assert submission.id is not None
        found = [json.loads(line) for line in reading.results(self.pool.db, submission.id)]
        self.history.read(submission, found)
        return found

    def called(self, submission: Submission, worker: str) -> int:
        """How many of a batch's jobs a worker has begun to call, and not only claimed: those go back when it drains."""
        return self.running(submission, worker, jobs.c.started_at.is_not(None))

    def running(self, submission: Submission, worker: str | None = None, *those: ColumnElement[bool]) -> int:
        """How many of a batch's jobs a worker, or any, runs."""
        which = [jobs.c.batch_id == submission.id, jobs.c.state == JobState.RUNNING, *those]
        which += [] if worker is None else [jobs.c.worker == worker]
        with self.pool.db.read() as c:
            return int(c.execute(select(func.count()).where(*which)).scalar_one())

    def open_jobs(self, submission: Submission) -> int:
        """Jobs of a batch that are not terminal."""
        assert submission.id is not None
        return int(reading.batch(self.pool.db, submission.id).open)

    # --- the stream ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Keep the pool busy until `stop`."""
        self._stream = threading.Thread(target=self._keep_busy, name="stream", daemon=True)
        self._stream.start()

    def stop(self) -> None:
        """Submit nothing more."""
        self._stopping.set()
        if self._stream is not None:
            self._stream.join()

    def open_in_all(self) -> int:
        """Jobs of every open batch that are not terminal."""
        with self.pool.db.read() as c:
            query = select(func.sum(batches.c.open)).where(batches.c.state == BatchState.OPEN)
            return int(c.execute(query).scalar() or 0)

    def waiting(self, model_class: str) -> int:
        """Jobs of a class that are due and not yet in a worker's hand."""
        which = (
            batches.c.state == BatchState.OPEN,
            jobs.c.model_class == model_class,
            jobs.c.state.in_((JobState.QUEUED, JobState.DISPATCHED)),
            jobs.c.due_at <= time.time(),
        )
        query = select(func.count()).select_from(jobs.join(batches, batches.c.id == jobs.c.batch_id)).where(*which)
        with self.pool.db.read() as c:
            return int(c.execute(query).scalar_one())

    def _keep_busy(self) -> None:
        while not self._stopping.wait(2 * self._look_s):
            with suppress(DBAPIError, OffloadError):
                if self.open_in_all() < LOW:
                    self.submit(BATCH)
                self._read_finished()

    def _read_finished(self) -> None:
        """Read every batch once as soon as it is over; the end of the run reads them all again."""
        waiting = {s.id: s for s in self.history.promised if not s.was_read}
        if not waiting:
            return
        over = (BatchState.FINISHED, BatchState.CANCELLED)
        with self.pool.db.read() as c:
            query = select(batches.c.id).where(batches.c.id.in_(waiting), batches.c.state.in_(over))
            done = list(c.execute(query).scalars())
        for batch_id in done:
            self.results(waiting[batch_id])
            waiting[batch_id].was_read = True
