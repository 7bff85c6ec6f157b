"""The engine, its two kinds of transaction, and the database's clock.  SQLite on one machine, PostgreSQL for many."""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, Table, create_engine, event, func, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.sql.elements import ColumnElement, TextClause

from tasks.errors import ConfigError

#: milliseconds SQLite waits for another writer; every transaction is short, so this is generous
BUSY_TIMEOUT_MS = 20_000
#: seconds until the next try for the write lock: the first, the longest, and how they grow
LOCK_POLL_S, LOCK_POLL_MOST_S, LOCK_POLL_GROWS = 0.001, 0.008, 1.5
#: rows one statement names at once
IN_LIST = 500
#: tries of a transaction that PostgreSQL broke off for another's sake
TRIES = 6
#: deadlock_detected, serialization_failure
BROKEN_OFF = ("40P01", "40001")
#: SQLSTATEs that begin so are about the transaction, not about what it writes
TRANSACTION_CLASS = "25"
#: advisory locks of the ledger; any numbers, the same in every process
DISPATCH_LOCK, SCHEMA_LOCK, NOTICE_LOCK = 0x0FF10AD1, 0x0FF10AD2, 0x0FF10AD3

#: seconds a transaction may stand still, and one statement may take; see also sweeping.end_frozen
STANDS_STILL_S, STATEMENT_S = 5, 30
#: psycopg's; milliseconds where PostgreSQL has no other unit. A cut network is noticed within 20 s.
_POSTGRES = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "options": f"-c statement_timeout={STATEMENT_S}s -c lock_timeout=15000 "
    f"-c idle_in_transaction_session_timeout={STANDS_STILL_S}s",
}

#: the name of every connection, whatever the address says: results wait for the transactions that have it (`settled`)
_NAME = {"application_name": "offload"}
#: when the oldest transaction of the ledger's other connections began, if there is one
_OLDEST = text(
    "SELECT extract(epoch FROM min(xact_start))::float8 FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = current_setting('application_name') AND pid <> pg_backend_pid()"
)

P = ParamSpec("P")
R = TypeVar("R")


class Database:
    """A ledger's engine. Safe to share between threads; cheap to keep, dear to make."""

    def __init__(self, at: str | Path) -> None:
        url = _address(at)
        self.is_postgres = url.get_backend_name() == "postgresql"
        self.engine = _postgres(url) if self.is_postgres else _sqlite(url)
        #: where it is, for people: a file or an address without its password
        self.where = _shown(url) if self.is_postgres else str(_file(url))
        #: SQLite's file
        self.path = None if self.is_postgres else _file(url)
        self._writing = threading.Lock()

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """A transaction that writes; on SQLite it takes the write lock at once.

        Not `durable`: on SQLite a power cut may undo it, with all that came after it. Dispatching, claiming and
        renewing are: whoever held those jobs is gone then too, and the sync they save is most of what a commit costs.
        On PostgreSQL every commit is durable: its workers outlive it, and a claim undone would give a fence twice.
        """
        with (
            self._one_writer(),
            self.engine.connect().execution_options(offload_durable=durable) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def write_at_leisure(self) -> Iterator[Connection]:
        """A transaction that writes and may take hours, such as a migration of large tables; none beside it should."""
        with self.write() as connection:
            if not self.is_postgres:
                yield connection
                return
            for limit in ("statement_timeout", "idle_in_transaction_session_timeout"):
                connection.exec_driver_sql(f"SET LOCAL {limit} = 0")
            driver: Any = connection.connection.driver_connection
            driver.patient = True
            try:
                yield connection
            finally:
                driver.patient = False

    @contextmanager
    def _one_writer(self) -> Iterator[None]:
        """SQLite has one writer: of a process's threads one tries for its lock, the others sleep.

        Each try costs a tenth of a millisecond, and those who try take the time of the one who writes.
        """
        mine = not self.is_postgres and self._writing.acquire(timeout=BUSY_TIMEOUT_MS / 1000)
        try:
            yield
        finally:
            if mine:
                self._writing.release()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads; it never waits for writers."""
        options: dict[str, Any] = {"postgresql_readonly": True} if self.is_postgres else {"offload_read": True}
        with self.engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection

    def now(self, connection: Connection) -> float:
        """Unix seconds, by PostgreSQL's own clock; SQLite has only each process's."""
        if self.is_postgres:
            return float(connection.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one())
        return time.time()

    def settled(self, connection: Connection) -> float | None:
        """A time of this clock: what was written under an earlier one is committed, or never will be.

        None where commits come in the order of their times: SQLite has one writer. The rows must be read by a later
        statement than this. A transaction's own time is no earlier than its start.
        """
        if not self.is_postgres:
            return None
        now = self.now(connection)  # before the look: what begins after it has a later time
        return min(now, connection.execute(_OLDEST).scalar() or now)

    def alone(self, connection: Connection, lock: int) -> None:
        """Wait until no other transaction holds this lock, and hold it to the end; SQLite has one writer anyway."""
        if self.is_postgres:
            connection.execute(select(func.pg_advisory_xact_lock(lock)))

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def retried(function: Callable[Concatenate[Database, P], R]) -> Callable[Concatenate[Database, P], R]:
    """Run it again when PostgreSQL broke its transaction off for another's sake; nothing of it was written then."""

    @functools.wraps(function)
    def run(db: Database, /, *args: P.args, **kwargs: P.kwargs) -> R:
        for attempt in range(TRIES):
            try:
                return function(db, *args, **kwargs)
            except DBAPIError as error:
                if not is_broken_off(error) or attempt == TRIES - 1:
                    raise
            time.sleep(random.uniform(0.005, 0.02) * 2**attempt)
        raise AssertionError("unreachable")

    return run


def is_broken_off(error: DBAPIError) -> bool:
    """Whether PostgreSQL undid the transaction so that another could go on."""
    return getattr(error.orig, "sqlstate", None) in BROKEN_OFF


def is_unable(error: Exception) -> bool:
    """Whether the database could not write just now, whatever it was to write: it is away, busy, or a replica."""
    if not isinstance(error, DBAPIError):
        return False
    # psycopg calls some of class 25, a read-only transaction and one that was idle for too long, internal errors
    state = getattr(error.orig, "sqlstate", None) or ""
    return isinstance(error, OperationalError) or error.connection_invalidated or state.startswith(TRANSACTION_CLASS)


def locked(
    c: Connection, column: ColumnElement[int], *which: ColumnElement[bool] | TextClause, skip: bool = False
) -> list[int]:
    """The ids of these rows, locked in their order; `skip` leaves out those that others hold."""
    query = select(column).where(*which).order_by(column).with_for_update(skip_locked=skip)
    return list(c.execute(query).scalars())


def parts(ids: Sequence[int]) -> Iterator[list[int]]:
    """Ids in pieces that one statement can name."""
    for start in range(0, len(ids), IN_LIST):
        yield list(ids[start : start + IN_LIST])


def insert_new(c: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert those of the rows whose key is not there yet, in the order given."""
    if rows:
        dialect: Any = postgresql if c.dialect.name == "postgresql" else sqlite
        c.execute(dialect.insert(table).on_conflict_do_nothing(), rows)


# --- the two engines -------------------------------------------------------------------------------------


def _address(at: str | Path) -> URL:
    expected = "expected sqlite:///path or postgresql://user:password@host/database"
    if isinstance(at, Path):  # it may hold characters that mean something in an address
        return URL.create("sqlite", database=str(at))
    try:
        url = make_url(at)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError):
        raise ConfigError(f"OFFLOAD_DATABASE_URL is no database address; {expected}") from None
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite" or not url.database or url.database == ":memory:":
        raise ConfigError(f"OFFLOAD_DATABASE_URL: the ledger is a SQLite file or a PostgreSQL database; {expected}")
    return url


def _shown(url: URL) -> str:
    return url.set(drivername="postgresql", query={}).render_as_string()  # a query may hold a password, too


def _file(url: URL) -> Path:
    return Path(str(url.database).removeprefix("file:"))  # an address may be SQLite's own URI


def _postgres(url: URL) -> Engine:
    try:
        from tasks.ledger.patience import PatientConnection

        engine = create_engine(
            url,
            hide_parameters=True,
            connect_args={name: value for name, value in _POSTGRES.items() if name not in url.query} | _NAME,
            pool_size=8,
            max_overflow=16,
            pool_pre_ping=True,  # a connection that a restart of the server broke is replaced before it is used
        )
    except (ImportError, NoSuchModuleError):
        raise ConfigError("OFFLOAD_DATABASE_URL: PostgreSQL needs the extra: install offload[postgres]") from None
    event.listen(
        engine, "do_connect", lambda _dialect, _record, args, params: PatientConnection.connect(*args, **params)
    )
    return engine


def _sqlite(url: URL) -> Engine:
    engine = create_engine(
        url,
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
    until, wait = time.monotonic() + BUSY_TIMEOUT_MS / 1000, LOCK_POLL_S
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
            time.sleep(random.uniform(wait / 2, wait))
            wait = min(wait * LOCK_POLL_GROWS, LOCK_POLL_MOST_S)
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
