"""The whole ledger as one file, and back: SQLite by its online backup, PostgreSQL by pg_dump and pg_restore.

A copy is one moment of the ledger, whoever writes meanwhile; nobody waits for it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.engine import URL

from tasks.errors import PoolError
from tasks.ledger.database import SCHEMA_LOCK, Database
from tasks.ledger.schema import check_known, drop_tables, refuse_beside_roles, revision
from tasks.settings import Times
from tasks.tables import Batch

batches = Batch.__table__  # type: ignore[attr-defined]

#: what a copy's file is called, by the kind of the ledger
FILES = {"sqlite": "ledger.db", "postgresql": "ledger.dump"}


def kind(db: Database) -> str:
    """sqlite or postgresql."""
    return "postgresql" if db.is_postgres else "sqlite"


def copy(db: Database, to: Path) -> None:
    """Write a copy of the ledger into a new file that only its owner reads; raises PoolError."""
    to.touch(mode=0o600)
    if db.path is None:
        _postgres("pg_dump", db, "--format=custom", f"--file={to}")
        return
    with closing(_opened(db.path, "ro")) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)  # in one step: in steps, every commit of the pool would begin it anew
        found = target.execute("PRAGMA quick_check(1)").fetchone()
    if found != ("ok",):
        raise PoolError(f"the ledger {db.where} is damaged; its copy is of no use: `offload doctor --deep`")


def put_back(db: Database, source: Path, times: Times) -> None:
    """Make the ledger what a copy of its kind says; raises PoolError unless it holds no batch and nobody uses it.

    Its tables are then those of the copy, which may be older ones.
    """
    if db.path is not None and not db.path.exists():
        _replace(db.path, source)
        return
    made_by = check_free(db, times)
    if db.path is not None:
        db.close()
        _replace(db.path, source)
        return
    _run("pg_restore", "--list", str(source))  # before anything goes: that it is there, and can read this copy
    if made_by is not None:  # all of them: those that are newer than the copy refer to those that it replaces
        with db.write() as c:
            db.alone(c, SCHEMA_LOCK)
            drop_tables(c)
    _postgres("pg_restore", db, "--single-transaction", "--exit-on-error", str(source))


def check_free(db: Database, times: Times) -> str | None:
    """The revision of the tables there, if any; raises PoolError where they hold a batch or somebody uses them."""
    if db.path is not None and not db.path.exists():
        return None
    made_by = revision(db)
    if made_by is not None:
        check_known(made_by, db.where)
        refuse_beside_roles(db, times, "restore")
        _refuse_over_batches(db)
    return made_by


def _refuse_over_batches(db: Database) -> None:
    with db.read() as c:
        if c.execute(select(batches.c.id).limit(1)).first() is not None:
            raise PoolError(
                f"the ledger {db.where} holds batches; restore into an empty one: another OFFLOAD_HOME, say"
            )


def _replace(ledger: Path, source: Path) -> None:
    ledger.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = ledger.with_name(f".{ledger.name}.new")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    shutil.copyfile(source, partial)
    for log in ("-wal", "-shm"):  # of the empty ledger that was there
        ledger.with_name(ledger.name + log).unlink(missing_ok=True)
    partial.replace(ledger)


def _opened(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True)


def _postgres(program: str, db: Database, *arguments: str) -> None:
    """Run one of PostgreSQL's own programs on the ledger; its password goes by the environment, which nobody reads."""
    address, secret = _without_password(db.engine.url)
    _run(program, "--no-owner", "--no-privileges", f"--dbname={address}", *arguments, secret=secret)


def _run(program: str, *arguments: str, secret: Mapping[str, str] | None = None) -> None:
    found = shutil.which(program)
    if found is None:
        raise PoolError(f"{program} is not installed here; it comes with PostgreSQL's client of the server's version")
    environment = os.environ | dict(secret or {})
    done = subprocess.run(
        [found, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[0]
        raise PoolError(f"{program} failed: {said.removeprefix(f'{program}: ').removeprefix('error: ')}")


def _without_password(url: URL) -> tuple[str, dict[str, str]]:
    """An address as libpq takes it, and the environment that holds its password, wherever the address has it."""
    said = url.query.get("password", url.password)
    query = {name: value for name, value in url.query.items() if name != "password"}
    # a URL of its own: to `URL.set`, None says that nothing is to be changed
    plain = URL.create("postgresql", url.username, None, url.host, url.port, url.database, query)
    return plain.render_as_string(hide_password=False), {"PGPASSWORD": str(said)} if said else {}
