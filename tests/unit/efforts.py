"""What a question costs a ledger, counted and not timed: it is the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, event, text

from tasks.ledger.database import Database

#: times that a question is asked: from about the tenth on a connection PostgreSQL plans for all parameters alike
TIMES = 15

_ROWS_READ = "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables"


def effort(db: Database, ask: Callable[[], object]) -> int:
    """Of asking TIMES times: hundreds of steps of SQLite's machine, or rows that PostgreSQL reads of its tables."""
    if db.is_postgres:
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
            c.execute(text("VACUUM ANALYZE"))
        return _rows_read(db, ask)
    return _steps(db, ask)


def _steps(db: Database, ask: Callable[[], object]) -> int:
    taken = 0

    def step() -> int:
        nonlocal taken
        taken += 1
        return 0

    def count(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(step, 100)

    def stop(connection: Any, *_: Any) -> None:
        connection.set_progress_handler(None, 0)

    _ask(db, ask, checkout=count, checkin=stop)
    return taken


def _rows_read(db: Database, ask: Callable[[], object]) -> int:
    read, before = 0, 0

    def so_far(connection: Connection) -> int:
        driver: Any = connection.connection.driver_connection
        return int(driver.execute(_ROWS_READ).fetchone()[0])

    def begin(connection: Connection, *_: Any) -> None:
        nonlocal before
        before = so_far(connection)

    def end(connection: Connection, *_: Any) -> None:
        nonlocal read
        read += so_far(connection) - before

    _ask(db, ask, before_cursor_execute=begin, after_cursor_execute=end)
    return read


def _ask(db: Database, ask: Callable[[], object], **listeners: Callable[..., None]) -> None:
    for name, listener in listeners.items():
        event.listen(db.engine, name, listener)
    try:
        for _ in range(TIMES):
            ask()
    finally:
        for name, listener in listeners.items():
            event.remove(db.engine, name, listener)
