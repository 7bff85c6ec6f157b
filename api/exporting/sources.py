"""Where the figures come from, each on a thread of its own, so that one that hangs holds up nobody."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy.exc import SQLAlchemyError

from tasks.app import broker_words
from tasks.errors import BrokerDown, PoolError
from tasks.ledger.database import Database
from tasks.ledger.schema import check, revision
from tasks.queues import class_queue

#: seconds Redis may take for an answer
REDIS_S = 1.0

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Look(Generic[T]):
    """A question to somebody who may be away. One is asked at a time: who comes meanwhile waits for the same answer.

    rest: how many times as long as the last question took nothing is asked.
    """

    def __init__(self, whom: str, ask: Callable[[], T], rest: float = 0.0) -> None:
        self._whom = whom
        self._ask = ask
        self._rest = rest
        self._lock = threading.Lock()
        self._asked: Future[T] | None = None
        self._last: T | None = None
        self._again_at = 0.0
        self._trouble = ""

    def begin(self) -> None:
        """Ask, unless the last question has no answer yet, or is not long ago."""
        with self._lock:
            if self._asked is None or (self._asked.done() and time.monotonic() >= self._again_at):
                self._asked = Future()
                threading.Thread(target=self._run, args=(self._asked,), name=self._whom, daemon=True).start()

    def answer(self, until: float) -> T | None:
        """The answer, or None where there is none by then (monotonic seconds)."""
        with self._lock:
            asked = self._asked
        try:
            return None if asked is None else asked.result(max(0.0, until - time.monotonic()))
        except Exception:  # noted where it was raised; TimeoutError is among them
            return None

    def newest(self, until: float) -> T | None:
        """The answer, or the one before where it takes longer."""
        before = self._last
        found = self.answer(until)
        return before if found is None else found

    def _run(self, asked: Future[T]) -> None:
        began = time.monotonic()
        try:
            self._last = self._ask()
        except Exception as error:
            self._last = None
            self._note(_trouble(error))
            asked.set_exception(error)
            return
        self._note("")
        self._again_at = time.monotonic() + self._rest * (time.monotonic() - began)
        asked.set_result(self._last)

    def _note(self, trouble: str) -> None:
        """Say it once when somebody goes, and when he comes back."""
        if trouble and not self._trouble:
            log.warning(f"{self._whom} cannot be asked", trouble=trouble)
        elif self._trouble and not trouble:
            log.info(f"{self._whom} can be asked again")
        self._trouble = trouble


def _trouble(error: Exception) -> str:
    """Our own words, or what kind of error it is: others' may quote what is nobody's business."""
    if isinstance(error, PoolError | BrokerDown):
        return str(error)
    fault = "" if isinstance(error, SQLAlchemyError | OSError) else "a fault of ours: "
    return fault + type(error).__name__


class Ledger:
    """The ledger of this version, opened when it is there; its tables are made by those who write them."""

    def __init__(self, at: str | Path) -> None:
        self._at = at
        self._lock = threading.Lock()
        self._db: Database | None = None
        self._file: tuple[int, int] | None = None

    @contextmanager
    def opened(self) -> Iterator[Database]:
        """The ledger; raises PoolError, or SQLAlchemyError, after which it is opened anew."""
        with self._lock:
            db = self._opened()
        try:
            yield db
        except SQLAlchemyError:
            self.close()
            raise

    def _opened(self) -> Database:
        if self._db is not None and self._file == _identity(self._db.path):
            return self._db
        self._forget()
        db = Database(self._at)
        try:
            there = _identity(db.path)  # connecting would make the file
            made_by = None if there is None and db.path is not None else revision(db)
            if made_by is None:
                raise PoolError(f"there is no ledger at {db.where} yet")
            check(made_by, db.where)
        except (SQLAlchemyError, PoolError):
            db.close()
            raise
        self._db, self._file = db, there
        return db

    def close(self) -> None:
        """Close its connections."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _identity(path: Path | None) -> tuple[int, int] | None:
    """Which file it is: one that was restored from a backup is another. None where there is none."""
    try:
        found = None if path is None else os.stat(path)
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)


class Broker:
    """Redis's lists. url: is asked each time, as the pool may come later."""

    def __init__(self, url: Callable[[], str | None], classes: Sequence[str]) -> None:
        self._url = url
        self._classes = classes
        self._client: redis.Redis | None = None
        self._at = ""

    def lengths(self) -> dict[str, int]:
        """class -> messages in its list; raises BrokerDown."""
        url = self._url()
        if url is None:
            raise BrokerDown("no Redis is known here")
        if self._client is None or url != self._at:
            self.close()
            never = Retry(NoBackoff(), 0)
            self._client = redis.Redis.from_url(
                url, socket_timeout=REDIS_S, socket_connect_timeout=REDIS_S, retry=never
            )
            self._at = url
        try:
            with self._client.pipeline(transaction=False) as pipe:
                for name in self._classes:
                    pipe.llen(class_queue(name))
                return dict(zip(self._classes, map(int, pipe.execute()), strict=True))
        except redis.RedisError as error:
            raise BrokerDown(broker_words(error)) from None

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None
