"""Opening a ledger: its tables are made, or are those of this version, or nothing is touched.

Migrations are Alembic's, in `migrations/`; a new ledger gets the tables of today at once, marked with their revision.
"""

from __future__ import annotations

import re
import secrets
import sqlite3
import time
from pathlib import Path

from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.exc import DBAPIError
from sqlmodel import SQLModel

from tasks.errors import OtherTables, PoolError
from tasks.ledger.database import SCHEMA_LOCK, Database, insert_new
from tasks.ledger.ticks import LATE_SWEEPS, last_tick
from tasks.settings import Times
from tasks.tables import PoolFacts, Worker

#: the newest of migrations/versions; grows with every change of the tables
REVISION = "0007"
#: tries, 50 ms apart, to switch a new ledger to WAL while another process does so too
WAL_TRIES = 100
#: what tables are called that were there before the first release, or are another program's
UNRELEASED = "0000"
#: Alembic's own table
VERSIONS = "alembic_version"

pool = PoolFacts.__table__  # type: ignore[attr-defined]
workers = Worker.__table__  # type: ignore[attr-defined]


def open_ledger(at: str | Path) -> Database:
    """Open the ledger, an address or a file, and make its tables where there are none; PoolError where it cannot be."""
    database = Database(at)
    try:
        _make_file(database)
        made_by = revision(database)
        if made_by is None:
            _create(database)
        else:
            check(made_by, database.where)
    except (DBAPIError, OSError) as error:
        database.close()
        raise PoolError(f"the ledger {database.where} cannot be opened: {_reason(error)}") from None
    except PoolError:
        database.close()
        raise
    return database


def check(made_by: str, where: str) -> None:
    """Raise OtherTables unless the tables are those of this version."""
    check_known(made_by, where)
    if made_by < REVISION:
        raise OtherTables(f"the ledger {where} has older tables ({made_by}, here {REVISION}): run `offload db upgrade`")


def check_known(made_by: str, where: str) -> None:
    """Raise OtherTables for tables that this version can neither use nor upgrade."""
    if made_by == UNRELEASED or not re.fullmatch(r"\d{4}", made_by):
        raise OtherTables(f"{where} holds tables that no release of Offload made: give the ledger another place")
    if made_by > REVISION:
        raise OtherTables(
            f"the ledger {where} has newer tables ({made_by}, here {REVISION}): this Offload is older than the pool's; "
            "update it on this machine"
        )


def check_still(database: Database) -> None:
    """Raise OtherTables where the tables of an open ledger were upgraded meanwhile."""
    made_by = revision(database)
    if made_by is not None:
        check(made_by, database.where)


def revision(database: Database) -> str | None:
    """The revision of the ledger's tables; None where there are none."""
    with database.read() as c:
        return revision_in(c)


def revision_in(c: Connection) -> str | None:
    """The same, inside a transaction."""
    there = inspect(c)
    has_jobs = there.has_table("jobs")  # first: another process may make both at once, between two looks
    if there.has_table(VERSIONS):
        return str(c.execute(text(f"SELECT version_num FROM {VERSIONS}")).scalar() or UNRELEASED)
    return UNRELEASED if has_jobs else None


def upgrade(at: str | Path, times: Times) -> tuple[str | None, str]:
    """Bring a ledger's tables to this version; (revision before, revision after).

    Raises PoolError while workers or beat, which were seen a moment ago, run on the old tables.
    """
    database = Database(at)
    try:
        _make_file(database)
        before = revision(database)
        if before is None:
            _create(database)
        else:
            check_known(before, database.where)
            if before != REVISION:
                refuse_beside_roles(database, times, "upgrade")
            migrate(database)
    except (DBAPIError, OSError) as error:
        raise PoolError(f"the ledger {database.where} cannot be upgraded: {_reason(error)}") from None
    finally:
        database.close()
    return before, REVISION


def refuse_beside_roles(database: Database, times: Times, then: str) -> None:
    """Raise PoolError while workers or beat, which were seen a moment ago, run on the ledger; `then`: what waits."""
    with database.read() as c:
        query = select(workers.c.name).where(workers.c.last_seen > database.now(c) - times.worker_gone)
        live = sorted(c.execute(query).scalars())
    swept, gone_s = last_tick(database, "sweep"), LATE_SWEEPS * times.sweep
    if swept is not None and swept < gone_s:
        live.append(f"beat (seen until {gone_s:g} s after its end)")  # it has no row to take with it
    if live:
        raise PoolError(f"what runs on the ledger as it is: {', '.join(live)}; stop it, then {then}")


def migrate(database: Database, to: str = "head") -> None:
    """Bring the tables to a revision, whoever was seen on them; in one transaction."""
    from alembic import command
    from alembic.config import Config

    with database.write_at_leisure() as c:
        database.alone(c, SCHEMA_LOCK)
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        config.attributes["connection"] = c
        command.upgrade(config, to)


def drop_tables(c: Connection) -> None:
    """Drop all tables of a ledger at once, whichever of them are there, so that none waits for another to go first."""
    names = ", ".join([*SQLModel.metadata.tables, VERSIONS])
    c.exec_driver_sql(f"DROP TABLE IF EXISTS {names}")


def _make_file(database: Database) -> None:
    if database.path is not None:
        database.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not database.path.exists():
            database.path.touch(mode=0o600)  # before SQLite: its log takes the same rights, and holds prompts too


def _create(database: Database) -> None:
    if database.path is not None:
        _set_wal(database)
    with database.write() as c:
        database.alone(c, SCHEMA_LOCK)
        if revision_in(c) is not None:  # another process was first
            return
        SQLModel.metadata.create_all(c)
        insert_new(c, pool, [{"id": 1, "salt": secrets.token_bytes(32)}])
        c.execute(text(f"CREATE TABLE {VERSIONS} (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
        c.execute(text(f"INSERT INTO {VERSIONS} VALUES ('{REVISION}')"))


def _set_wal(database: Database) -> None:
    """Two processes that set WAL at once fail, and one that finds it set changes nothing."""
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


def _reason(error: Exception) -> str:
    """The database's or the system's own words, of which the first line names no row."""
    return str(getattr(error, "orig", None) or error).strip().split("\n")[0]
