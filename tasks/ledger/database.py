"""The engine, its two kinds of transaction, and the database's clock."""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, insert, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlmodel import SQLModel

from tasks.errors import ConfigError, PoolError
from tasks.tables import PoolFacts

#: milliseconds SQLite waits for another writer; every transaction is short, so this is generous
BUSY_TIMEOUT_MS = 20_000
#: seconds between two tries for the write lock
LOCK_POLL_S = 0.001
#: grows with every change of the tables
SCHEMA_VERSION = 2
#: tries, 50 ms apart, to switch a new ledger to WAL while another process does so too
WAL_TRIES = 100


class Database:
    """A ledger's engine. Safe to share between threads; cheap to keep, dear to make."""

    def __init__(self, at: str | Path) -> None:
        self.engine = _engine(at)
        self.path = Path(str(self.engine.url.database).removeprefix("file:"))  # an address may be SQLite's own URI

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """A transaction that writes; on SQLite it takes the write lock at once.

        Not `durable`: a power cut may undo it, with all that came after it. Dispatching, claiming and renewing are:
        whoever held those jobs is gone then too, and the sync they save is most of what a commit costs.
        """
        with self.engine.connect().execution_options(offload_durable=durable) as connection, connection.begin():
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads; it never waits for writers."""
        with self.engine.connect().execution_options(offload_read=True) as connection, connection.begin():
            yield connection

    def now(self, connection: Connection) -> float:
        """Unix seconds. SQLite has only each process's own clock."""
        return time.time()

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def _engine(at: str | Path) -> Engine:
    try:  # a path may hold characters that mean something in an address
        parsed = make_url(at) if isinstance(at, str) else URL.create("sqlite", database=str(at))
    except ArgumentError:
        raise ConfigError("OFFLOAD_DATABASE_URL is no database address; expected sqlite:///path") from None
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise ConfigError("OFFLOAD_DATABASE_URL: the ledger is a SQLite file here; expected sqlite:///path")
    engine = create_engine(
        parsed,
        hide_parameters=True,
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False},
        pool_size=8,
        max_overflow=16,
    )
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(dbapi: Any, _record: Any) -> None:
    dbapi.isolation_level = None  # we begin by ourselves: see _on_begin
    cursor = dbapi.cursor()
    cursor.execute("PRAGMA synchronous=FULL")  # the commit is the promise
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _on_begin(connection: Connection) -> None:
    # A deferred transaction that turns into a writer fails at once when another one wrote in between.
    if connection.get_execution_options().get("offload_read"):
        connection.exec_driver_sql("BEGIN")
    else:
        _begin_writing(connection)


def _begin_writing(connection: Connection) -> None:
    """Take the write lock. SQLite's own wait sleeps up to 100 ms at a time, which halved two workers' throughput."""
    until = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    durable = connection.get_execution_options().get("offload_durable", True)
    connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
    connection.exec_driver_sql("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                return
            except OperationalError as error:
                if "locked" not in str(error.orig) or time.monotonic() > until:
                    raise
            time.sleep(LOCK_POLL_S)
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")


def open_ledger(at: str | Path) -> Database:
    """Open the ledger, an address or a file, and make its tables where there are none; PoolError where it cannot be."""
    database = Database(at)
    path = database.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            path.touch(mode=0o600)  # before SQLite: its write-ahead log takes the same rights, and holds prompts too
        made_by = _schema_version(database)
        if made_by == 0:
            _create(database)
        elif made_by != SCHEMA_VERSION:
            raise PoolError(
                f"the ledger {path} was made by another version of Offload (tables {made_by}, here {SCHEMA_VERSION}); "
                "use that version, or another OFFLOAD_HOME"
            )
    except (OperationalError, OSError) as error:
        reason = getattr(error, "orig", None) or error
        raise PoolError(f"the ledger {path} cannot be opened: {reason}") from None
    return database


def _schema_version(database: Database) -> int:
    """What made the tables; 0 where there are none."""
    with database.read() as c:
        return int(c.execute(text("PRAGMA user_version")).scalar() or 0)


def _create(database: Database) -> None:
    # Two processes that set WAL at once fail, and one that finds it set changes nothing.
    raw = database.engine.raw_connection()
    try:
        for attempt in range(WAL_TRIES):
            try:
                raw.driver_connection.execute("PRAGMA journal_mode=WAL")  # type: ignore[union-attr]
                break
            except sqlite3.OperationalError as error:
                if attempt == WAL_TRIES - 1:
                    raise PoolError(f"the ledger cannot be put into WAL mode: {error}") from None
                time.sleep(0.05)
    finally:
        raw.close()
    with database.write() as c:
        SQLModel.metadata.create_all(c)
        c.execute(insert(PoolFacts).prefix_with("OR IGNORE").values(id=1, salt=secrets.token_bytes(32)))
        c.execute(text(f"PRAGMA user_version = {SCHEMA_VERSION}"))
