"""Uploaded batches become jobs: a thread checks all lines of each, then loads them, all or nothing.

It may die at any moment: whoever starts next finds the batch `validating` and begins again; what was loaded under its
id is not loaded twice, because its id is its idempotency key in the ledger.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

import structlog
from sqlalchemy.exc import SQLAlchemyError

from api.use_cases import batch_checks as checks
from api.use_cases import openai_texts as texts
from api.use_cases import uploads
from api.use_cases.pool import Pool
from api.use_cases.submitting import read_lines, seen_ids
from tasks.errors import BrokerDown, GivenUp, PoolError, QueueFull
from tasks.ledger import api_batches, endings
from tasks.ledger import submit as loading
from tasks.ledger.api_batches import Phase, Seen, Whose
from tasks.ledger.database import is_unable
from tasks.privacy import Tier
from tasks.routing import Said
from tasks.schemas import NewJob

#: faults of one batch that are kept
MOST_ERRORS = 100
#: seconds between two looks for batches that another process left
LOOK_EVERY_S = 2.0
#: seconds a file's content may be on another machine that validates it, before the batch fails
ELSEWHERE_S = 600.0
#: seconds between two looks for files whose time is over
TIDY_EVERY_S = 600.0

log = structlog.get_logger(__name__)


class Validator(threading.Thread):
    """One a process; `wake` it when there is a new batch."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(name="validator", daemon=True)
        self._pool = pool
        self._woken = threading.Event()
        self._stopping = False
        self._tidied_at = 0.0

    def wake(self) -> None:
        """There is something to do."""
        self._woken.set()

    def stop(self) -> None:
        """End it; a batch under way is begun again by whoever starts next."""
        self._stopping = True
        self._woken.set()

    def run(self) -> None:
        while not self._stopping:
            self._woken.clear()
            try:
                self._look()
            except Exception as error:  # the ledger is away, say: the next look finds everything again
                log.error("batches could not be checked", error=type(error).__name__)
            self._woken.wait(LOOK_EVERY_S)

    def _look(self) -> None:
        for batch_id in api_batches.validating(self._pool.db):
            if self._stopping:
                return
            try:
                validate(self._pool, batch_id)
            except Exception as error:  # one batch must not hold up those behind it
                if is_unable(error):
                    raise
                log.error("a batch could not be loaded", batch=batch_id, error=type(error).__name__)
        if time.monotonic() - self._tidied_at > TIDY_EVERY_S:
            self._tidied_at = time.monotonic()
            uploads.drop_expired(self._pool)


def validate(pool: Pool, batch_id: str) -> None:
    """Check a batch's lines and load them; whatever it comes to is kept in the ledger."""
    seen = api_batches.seen(pool.db, batch_id, Whose(everybody=True))
    if seen is None or seen.api.state != Phase.VALIDATING:
        return
    if seen.api.cancelling_at is not None and (seen.row is None or seen.row.opened_at is None):
        api_batches.cancelled(pool.db, batch_id)
        return
    file = api_batches.file(pool.db, seen.api.input_file_id, Whose(seen.api.owner))
    try:
        if file is None:
            raise FileNotFoundError
        with uploads.path_of(pool, file.id).open("rb") as source:
            _check_and_load(pool, seen, file.filename, source)
    except OSError:
        if file is None or not _is_young(pool, seen):  # a young one may be on another machine, which validates it
            message = texts.NO_FILE.format(seen.api.input_file_id[:80])
            api_batches.failed(pool.db, batch_id, [checks.error("invalid_request", message, "file_id")])


def _is_young(pool: Pool, seen: Seen) -> bool:
    with pool.db.read() as c:
        return pool.db.now(c) - float(seen.api.created_at) < ELSEWHERE_S


def _check_and_load(pool: Pool, seen: Seen, name: str, source: BinaryIO) -> None:
    reading = _Reading(pool, seen, source)
    for _ in reading.jobs():
        pass
    if not reading.lines and not reading.errors:
        reading.errors.append(checks.error("empty_file", texts.EMPTY, None))
    if reading.errors:
        api_batches.failed(pool.db, seen.api.id, reading.errors)
        return
    try:
        api_batches.check_fits(pool.db, seen.api.owner, reading.lines)
        _load(pool, seen, name, reading)
    except QueueFull as error:
        api_batches.failed(pool.db, seen.api.id, [checks.error("queue_limit", str(error), None)])
        return
    now = api_batches.seen(pool.db, seen.api.id, Whose(everybody=True))
    if now is not None and now.api.cancelling_at is not None:
        endings.cancel(pool.db, seen.api.id)
    with suppress(BrokerDown, SQLAlchemyError):  # beat sends it later
        pool.dispatch()


def _load(pool: Pool, seen: Seen, name: str, reading: _Reading) -> None:
    with pool.db.read() as c:
        left_s = seen.api.expires_at - pool.db.now(c)
    batch_id, new = loading.begin(
        pool.db,
        name=name,
        key=f"api {seen.api.id}",
        deadline_s=max(left_s, 0.0),
        notify=pool.registry.notify.batch_done,
        batch_id=seen.api.id,
    )
    if not new:
        return
    try:
        added = loading.add(pool.db, batch_id, reading.jobs())
        if reading.errors:
            raise PoolError("the file changed while it was read")
        loading.open_batch(
            pool.db, batch_id, added, lambda c: api_batches.loaded_in(c, pool.db.now(c), batch_id, reading.model)
        )
    except GivenUp:  # whoever has begun it anew goes on, and keeps what it has loaded
        log.info("a batch is loaded anew, by another process or after it was given up", batch=batch_id)
    except BaseException:
        with suppress(SQLAlchemyError):
            loading.drop_loading(pool.db, batch_id)
        raise


class _Reading:
    """The lines of a batch's file, read as often as needed."""

    def __init__(self, pool: Pool, seen: Seen, source: BinaryIO) -> None:
        self.errors: list[checks.Error] = []
        self.lines = self.inputs = 0
        self.model: str | None = None
        self._pool, self._source = pool, source
        self._endpoint = seen.api.endpoint
        self._said = said_of(seen.api.said)

    def jobs(self) -> Iterator[NewJob]:
        """The jobs of the valid lines; `errors` has the faults of the others, the first MOST_ERRORS of them."""
        self._source.seek(0)
        self.lines = self.inputs = 0
        with seen_ids() as first_line:
            for number, raw in read_lines(self._source):
                self.lines += 1
                if self.lines > checks.MOST_LINES:
                    self._fault(checks.error("invalid_request", texts.TOO_MANY.format(checks.MOST_LINES), None))
                    return
                job = checks.check(raw, number, self._endpoint, self._pool.registry, self._said)
                if isinstance(job, NewJob) and first_line(job.line_id, number) != number:
                    job = [checks.error("duplicate_custom_id", texts.DUPLICATE, "custom_id", number)]
                if isinstance(job, NewJob):
                    if self._fits(raw):
                        yield job
                    continue
                for fault in job:
                    self._fault(fault)
                if len(self.errors) >= MOST_ERRORS:
                    return

    def _fits(self, raw: bytes) -> bool:
        self.model = self.model or checks.model(raw)
        if self._endpoint == "/v1/embeddings":
            before, self.inputs = self.inputs, self.inputs + checks.inputs(raw)
            if before <= checks.MOST_INPUTS < self.inputs:
                message = texts.TOO_MANY_INPUTS.format(checks.MOST_INPUTS)
                self._fault(checks.error("invalid_request", message, None))
            return self.inputs <= checks.MOST_INPUTS
        return True

    def _fault(self, fault: checks.Error) -> None:
        if len(self.errors) < MOST_ERRORS:
            self.errors.append(fault)


def said_of(stored: dict[str, Any]) -> Said:
    """What holds for all lines, as it was stored."""
    tier = stored.get("tier")
    return Said(tier=Tier(tier) if tier else None, app=stored.get("app"))
