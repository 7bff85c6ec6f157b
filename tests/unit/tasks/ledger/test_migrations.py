"""The tables of every ledger are those of this version, however they were made; any other ledger is left as it is."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlmodel import SQLModel

from tasks.errors import ConfigError, OffloadError, PoolError
from tasks.ledger import claims, schema, ticks
from tasks.ledger.claims import Identity
from tasks.ledger.database import Database
from tasks.settings import Times
from tests.support.ports import free_port
from tests.support.postgres import Postgres
from tests.support.waiting import eventually
from tests.unit.databases import opened

TIMES = Times()
ME = Identity("node", "gpu", "run", 1)
#: opens every ledger named, when it is told to
OPENS = """
import sys
from tasks.ledger.schema import open_ledger
print("ready", flush=True)
input()
for place in sys.argv[1:]:
    open_ledger(place).close()
"""


def mark(place: str, revision: str) -> None:
    """A ledger whose tables are said to be of this revision."""
    schema.open_ledger(place).close()
    with opened(place) as db, db.write() as c:
        c.execute(text(f"UPDATE {schema.VERSIONS} SET version_num = '{revision}'"))


def rows(place: str) -> dict[str, list[Any]]:
    """Everything that is in a ledger."""
    with opened(place) as db, db.read() as c:
        return {name: list(c.execute(text(f"SELECT * FROM {name}"))) for name in inspect(c).get_table_names()}


def shape(c: Connection) -> dict[str, Any]:
    """What the database itself says of its tables: types, defaults, keys, and indexes with their conditions."""
    there = inspect(c)
    return {
        name: {
            "columns": {column["name"]: _said(column) for column in there.get_columns(name)},
            "key": there.get_pk_constraint(name)["constrained_columns"],
            "others": sorted(map(_said, (*there.get_unique_constraints(name), *there.get_foreign_keys(name)))),
            "indexes": sorted(map(_said, there.get_indexes(name))),
        }
        for name in set(there.get_table_names()) - {schema.VERSIONS}
    }


def _said(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {_said(v) if isinstance(v, dict) else v}" for k, v in sorted(found.items()))


def test_migrations_equal_the_tables(place: str) -> None:
    """From nothing, step by step, they make what a new ledger gets at once, to the last default and condition."""
    with opened(place) as db:
        schema.migrate(db)
        with db.write() as c:
            context = MigrationContext.configure(c, opts={"compare_type": True, "compare_server_default": True})
            assert compare_metadata(context, SQLModel.metadata) == []
            by_steps = shape(c)
            for table in reversed(SQLModel.metadata.sorted_tables):
                table.drop(c)
            SQLModel.metadata.create_all(c)
            at_once = shape(c)
    assert any("ix_jobs_out" in i and "running" in i for i in at_once["jobs"]["indexes"]), "conditions are looked at"
    assert by_steps == at_once


def test_a_new_ledger_is_of_the_newest_migration() -> None:
    """Whoever adds a migration says so where ledgers are opened."""
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).with_name("migrations")))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.REVISION]


def heartbeat(db: Database) -> None:
    """A worker that has been there for a while."""
    claims.report(db, ME, in_flight=0, serving=["small"], consuming=True, health="healthy", detail="")


@contextmanager
def refused(place: str, words: str) -> Iterator[None]:
    """One clear line, and not a byte is changed."""
    before = rows(place)
    with pytest.raises(PoolError, match=words) as raised:
        yield
    assert "\n" not in str(raised.value)
    assert rows(place) == before


@pytest.fixture
def later(place: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A ledger of this version with a worker in it; then this program becomes a newer one."""
    with opened(place) as db:
        schema.open_ledger(place).close()
        claims.register(db, ME, ["small"], 4)
        heartbeat(db)
    monkeypatch.setattr(schema, "REVISION", "0999")
    return place


def test_an_older_ledger_asks_for_its_upgrade(later: str) -> None:
    """It is not touched until somebody says so."""
    with refused(later, "older tables .* run `offload db upgrade`"):
        schema.open_ledger(later)


def test_no_upgrade_beside_beat(later: str) -> None:
    """Its sweeps would go on over new tables; one that has been silent for a while is gone."""
    with opened(later) as db:
        claims.leave(db, ME)
        ticks.tick(db, "sweep", {})
    with refused(later, r"as it is: beat \(seen until 20 s after its end\); stop it, then upgrade"):
        schema.upgrade(later, TIMES)
    assert schema.upgrade(later, TIMES.divided(1e6))[1] == schema.REVISION


def test_no_upgrade_beside_workers(later: str) -> None:
    """They would write as the old tables are; the upgrade names them."""
    with refused(later, r"runs on the ledger as it is: node/gpu; stop it, then upgrade"):
        schema.upgrade(later, TIMES)


NEWCOMERS: dict[str, Callable[[str], object]] = {
    "open": schema.open_ledger,
    "upgrade": lambda place: schema.upgrade(place, TIMES),
}


@pytest.mark.parametrize("come", NEWCOMERS.values(), ids=NEWCOMERS)
def test_a_newer_ledger_is_left_alone(place: str, come: Callable[[str], object]) -> None:
    """An Offload that is older than the pool's says so."""
    mark(place, "0999")
    with refused(place, "newer tables .* update it on this machine"):
        come(place)


def test_a_worker_stops_beside_newer_tables(place: str) -> None:
    """Its next heartbeat, and its next start, write nothing and say what is wrong."""
    schema.open_ledger(place).close()
    with opened(place) as db:
        claims.register(db, ME, ["small"], 4)
        heartbeat(db)
        mark(place, "0999")
        with refused(place, "newer tables"):
            heartbeat(db)
        with refused(place, "newer tables"):
            claims.register(db, ME, ["small"], 8)


@pytest.mark.parametrize("come", NEWCOMERS.values(), ids=NEWCOMERS)
def test_tables_of_no_release_are_left_alone(place: str, come: Callable[[str], object]) -> None:
    """A ledger from before the first release, or a database with a table of that name, is not taken for ours."""
    with opened(place) as db, db.write() as c:
        c.execute(text("CREATE TABLE jobs (id INTEGER PRIMARY KEY, salary INTEGER)"))
        c.execute(text("INSERT INTO jobs VALUES (1, 2)"))
    with refused(place, "no release .* another place"):
        come(place)


@pytest.mark.parametrize("come", NEWCOMERS.values(), ids=NEWCOMERS)
def test_another_programs_migrations_are_left_alone(place: str, come: Callable[[str], object]) -> None:
    """Many programs keep a table of Alembic's; what it names, if anything, is not ours."""
    with opened(place) as db, db.write() as c:
        c.execute(text(f"CREATE TABLE {schema.VERSIONS} (version_num VARCHAR(32))"))
    with refused(place, "no release .* another place"):
        come(place)
    with opened(place) as db, db.write() as c:
        c.execute(text(f"INSERT INTO {schema.VERSIONS} VALUES ('ae1027a6acf')"))
    with refused(place, "no release .* another place"):
        come(place)


def test_upgrading_makes_a_ledger_and_leaves_one_of_today(place: str) -> None:
    """Where there is nothing the tables are made; the second time nothing is to be done."""
    assert schema.upgrade(place, TIMES) == (None, schema.REVISION)
    made = rows(place)
    assert schema.upgrade(place, TIMES) == (schema.REVISION, schema.REVISION)
    assert rows(place) == made


def test_many_threads_open_a_new_ledger(place: str) -> None:
    """One makes the tables, the others find them; there is one salt."""
    errors: list[Exception] = []

    def come() -> None:
        try:
            schema.open_ledger(place).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=come) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(rows(place)["pool"]) == 1


@pytest.mark.slow
def test_processes_open_new_ledgers_at_once(postgres: Postgres, tmp_path: Path) -> None:
    """Two roles that start together, on either database, both get it."""
    places = [*(postgres.create(f"at_once_{n}") for n in range(3)), *(f"sqlite:///{tmp_path}/{n}.db" for n in range(3))]
    other = subprocess.Popen(
        [sys.executable, "-c", OPENS, *places],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdout.readline()
    other.stdin.write("now\n")
    other.stdin.flush()
    for place in places:
        schema.open_ledger(place).close()
    assert (other.communicate(timeout=60)[1], other.returncode) == ("", 0)
    assert [len(rows(place)["pool"]) for place in places] == [1] * 6
    for n in range(3):
        postgres.drop(f"at_once_{n}")


# --- out of reach ----------------------------------------------------------------------------------------


def told(address: str) -> str:
    """The one line about a ledger that cannot be opened; it shows no password."""
    with pytest.raises(OffloadError) as raised:
        schema.open_ledger(address)
    words = str(raised.value)
    assert "secret" not in words
    assert "\n" not in words
    return words


@pytest.mark.parametrize("scheme", ["mysql", "http", "postgresql2", "redis"])
def test_another_kind_of_database_is_told(scheme: str) -> None:
    """What is understood instead is named."""
    assert "expected sqlite:///path or postgresql://" in told(f"{scheme}://user:secret@127.0.0.1/ledger")


def test_nobody_at_the_port() -> None:
    """The address and the system's reason, at once."""
    port = free_port()
    words = told(f"postgresql://user:secret@127.0.0.1:{port}/ledger?password=secret&connect_timeout=2")
    assert f"postgresql://user:***@127.0.0.1:{port}/ledger cannot be opened" in words
    assert "refused" in words


@pytest.mark.parametrize("hosts", ["host=127.0.0.1,127.0.0.1&port={0},{1}", "host=127.0.0.1:{0}&host=127.0.0.1:{1}"])
def test_hosts_of_a_failover(postgres: Postgres, hosts: str) -> None:
    """An address may name several servers, as SQLAlchemy writes them; the first that answers is taken."""
    address = f"postgresql://offload@/postgres?{hosts.format(free_port(), postgres.port)}&connect_timeout=7"
    with opened(address) as db, db.read() as c:
        assert c.execute(text("SELECT 1")).scalar() == 1
        driver: Any = c.connection.driver_connection
        said = driver.info.get_parameters()
    assert said["connect_timeout"] == "7", "what it says counts"
    assert said["tcp_user_timeout"] == "15000", "all else is ours"


def test_a_database_that_is_not_there(postgres: Postgres) -> None:
    """PostgreSQL's own words name it."""
    assert 'database "nowhere" does not exist' in told(postgres.url("nowhere"))


@pytest.fixture
def guarded(postgres: Postgres) -> Iterator[str]:
    """The address of a database that asks one user for a password; {} is where it goes."""
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as c:
        found = c.execute("SHOW hba_file").fetchone()
        assert found is not None
        file = Path(found[0])
        before = file.read_text()
        c.execute("CREATE ROLE guarded LOGIN PASSWORD 'right secret'")
        file.write_text(f"host all guarded 127.0.0.1/32 scram-sha-256\n{before}")
        c.execute("SELECT pg_reload_conf()")
        yield postgres.url("postgres").replace("offload@", "guarded:{}@")
        file.write_text(before)
        c.execute("SELECT pg_reload_conf()")
        c.execute("DROP ROLE guarded")


def test_a_wrong_password(guarded: str) -> None:
    """It is told as what it is, and not shown."""
    address = guarded.format("wrong%20secret")
    eventually(lambda: "password authentication failed" in told(address), "the server asks for passwords", 10)
    assert "permission denied for schema public" in told(guarded.format("right%20secret"))


def test_without_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who installed the pool without PostgreSQL is told the name of the extra."""
    for name in [name for name in sys.modules if name == "psycopg" or name == "tasks.ledger.patience"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"install offload\[postgres\]"):
        schema.open_ledger("postgresql://user:secret@127.0.0.1/ledger")


@pytest.mark.parametrize("content", [b"", b"notes of mine, no database at all\n" * 100])
def test_a_file_that_is_no_ledger(tmp_path: Path, content: bytes) -> None:
    """A file of something else is not written to; an empty one becomes a ledger."""
    file = tmp_path / "ledger.db"
    file.write_bytes(content)
    if not content:
        schema.open_ledger(file).close()
        return
    assert "file is not a database" in told(f"sqlite:///{file}")
    assert file.read_bytes() == content
    assert "cannot be opened" in told(f"sqlite:///{tmp_path}")
