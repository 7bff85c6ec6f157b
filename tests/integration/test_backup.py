"""`offload backup` and `offload restore`: a pool in the middle of its work, gone on with elsewhere."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import inspect, text

from api.use_cases import uploads
from api.use_cases.backup import restore
from api.use_cases.pool import Pool
from tasks.errors import PoolError
from tasks.ledger import copying, reading, schema
from tasks.ledger.database import Database
from tasks.settings import Settings
from tests.support.cli import Ran, examined, offload
from tests.support.pool import TestPool, clean_environment, running, simulated
from tests.support.postgres import Postgres
from tests.support.waiting import eventually
from tests.unit.databases import opened
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

pytestmark = pytest.mark.slow

JOBS = 120


@pytest.fixture
def simulator() -> Iterator[BackgroundSimulator]:
    """A model server that takes its time, so that there is a middle."""
    with in_thread(SimulatorConfig(slots=8, loaded_limit=8, ttft_s=0.1)) as made:
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str | None, str | None]:
    """Where two pools keep their ledgers; None for a file in each one's home."""
    if request.param == "sqlite":
        return None, None
    server: Postgres = request.getfixturevalue("postgres")
    monkeypatch.setenv("PATH", f"{server.programs}:{os.environ['PATH']}")
    return server.create("backed_up"), server.create("restored")


def half_done(pool: TestPool, batch_id: str) -> bool:
    """Whether some jobs have ended, some run and some wait."""
    batch = pool.batch(batch_id)
    with pool.db.read() as c:
        states = Counter(row.state for row in c.execute(reading.jobs.select()))
    return bool(states["running"] and states["done"] and batch.open > JOBS / 3)


def test_a_pool_in_the_middle_of_its_work_is_finished_elsewhere(
    simulator: BackgroundSimulator, databases: tuple[str | None, str | None], tmp_path: Path
) -> None:
    """Every job has one result in the restored pool, those that ran at the backup too, and the same results as here."""
    config, folder = simulated(simulator.url), tmp_path / "backup"
    jobs = [{"category": "summarize", "prompt": f"job {i}", "id": f"line-{i}"} for i in range(JOBS)]
    with running(tmp_path / "one", config, database_url=databases[0]) as here:
        here.up()
        batch_id = here.submit(jobs)
        eventually(lambda: half_done(here, batch_id), "the batch is half done", every_s=0.005)
        simulator.configure(ttft_s=3.0)  # it stays in the middle, however long the backup takes
        done = here.cli("backup", str(folder), "--json")
        simulator.configure(ttft_s=0.1)
        assert done.code == 0, done.stderr
        expected = outputs(here.finished(batch_id))
    assert folder.stat().st_mode & 0o777 == 0o700
    with running(tmp_path / "two", config, database_url=databases[1]) as there:
        put = there.cli("restore", str(folder))
        assert put.code == 0, put.stderr
        was = there.batch(batch_id)
        assert 0 < was.open < JOBS
        there.up()
        assert outputs(there.finished(batch_id)) == expected
        examined(there.cli, "--deep")


def outputs(lines: list[dict[str, object]]) -> dict[object, object]:
    """line id -> state and output."""
    assert len(lines) == JOBS
    found: dict[object, object] = {line["id"]: (line["state"], line["output"]) for line in lines}
    assert len(found) == JOBS
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a ledger, offload.yaml and policy.yaml."""
    made = tmp_path / "home"
    made.mkdir()
    (made / "offload.yaml").write_text(yaml.safe_dump(simulated("http://127.0.0.1:9")))
    (made / "policy.yaml").write_text(cli(made, "policy", "show", "--shipped").stdout.decode())
    assert cli(made, "db", "upgrade").code == 0
    return made


def cli(home: Path, *arguments: str) -> Ran:
    return offload(clean_environment() | {"OFFLOAD_HOME": str(home)}, *arguments)


def test_a_backup_holds_what_a_person_wrote(home: Path, tmp_path: Path) -> None:
    """offload.yaml and policy.yaml come along and come back; a file that is there is left as it is, and is named."""
    assert cli(home, "backup", str(tmp_path / "b")).code == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "offload.yaml").write_text("# mine\n")
    done = cli(other, "restore", str(tmp_path / "b"))
    assert done.code == 0, done.stderr
    assert (other / "policy.yaml").read_text() == (home / "policy.yaml").read_text()
    assert (other / "offload.yaml").read_text() == "# mine\n"
    assert "offload.yaml was there" in done.stderr
    assert (other / "ledger.db").stat().st_mode & 0o777 == 0o600


def test_a_restore_needs_an_empty_pool(home: Path, tmp_path: Path) -> None:
    """A ledger with a batch is not overwritten, nor is one that beat ticks on."""
    assert cli(home, "backup", str(tmp_path / "b")).code == 0
    (tmp_path / "jobs.jsonl").write_text('{"category": "summarize", "prompt": "x"}\n')
    assert cli(home, "submit", str(tmp_path / "jobs.jsonl")).code == 0
    refused = cli(home, "restore", str(tmp_path / "b"))
    assert refused.code == 1
    assert "holds batches" in refused.stderr


def test_a_damaged_backup_is_refused(home: Path, tmp_path: Path) -> None:
    """A file that changed, one that is missing, a folder without a manifest, tables of a newer Offload."""
    folder, other = tmp_path / "b", tmp_path / "other"
    assert cli(home, "backup", str(folder)).code == 0
    assert cli(other, "restore", str(tmp_path / "nowhere")).code == 5
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"revision": "9999"}))
    assert "newer" in cli(other, "restore", str(folder)).stderr
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with (folder / "ledger.db").open("r+b") as file:
        file.seek(200)
        file.write(b"another")
    assert "not what was backed up" in cli(other, "restore", str(folder)).stderr
    (folder / "ledger.db").unlink()
    assert "missing" in cli(other, "restore", str(folder)).stderr
    assert not (other / "ledger.db").exists()


def test_a_backup_takes_nobodys_place(home: Path, tmp_path: Path) -> None:
    """A folder that holds something, a home without a ledger: refused, and nothing is left behind."""
    assert cli(home, "backup", str(home)).code == 2
    assert cli(tmp_path / "empty", "backup", str(tmp_path / "b")).code == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("/dev/null/b", "cannot be made"), ("link", "is there already"), ("x" * 5_000, "cannot be made")],
    ids=["a file's", "a dangling link", "long"],
)
def test_a_backup_needs_a_place(home: Path, tmp_path: Path, name: str, words: str) -> None:
    """Where there can be no new folder, the words say so before anything is copied."""
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    ran = cli(home, "backup", str(tmp_path / name))
    assert (ran.code, words in ran.stderr) == (2, True), ran.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home", "link"]


def test_without_pg_dump_the_words_say_so(postgres: Postgres, tmp_path: Path) -> None:
    """PostgreSQL's own program is named, and where it comes from."""
    environment = clean_environment() | {
        "OFFLOAD_HOME": str(tmp_path),
        "OFFLOAD_DATABASE_URL": postgres.create("no_dump"),
        "PATH": str(tmp_path),
    }
    assert offload(environment, "db", "upgrade").code == 0
    done = offload(environment, "backup", str(tmp_path / "b"))
    assert done.code == 1
    assert "pg_dump is not installed here" in done.stderr


@pytest.fixture(params=["sqlite", "postgresql"])
def places(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str]]:
    """The addresses of two ledgers."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/old.db", f"sqlite:///{tmp_path}/new.db"
        return
    server: Postgres = request.getfixturevalue("postgres")
    monkeypatch.setenv("PATH", f"{server.programs}:{os.environ['PATH']}")
    yield server.create("old_tables"), server.create("new_tables")
    for name in ("old_tables", "new_tables"):
        server.drop(name)


def test_a_backup_of_older_tables_is_brought_to_this_version(places: tuple[str, str], tmp_path: Path) -> None:
    """Restored over the tables of today, it is what it was, in the tables that a new ledger has."""
    old, new = places
    with opened(old) as db:
        schema.migrate(db, "0004")
        with db.write() as c:
            c.execute(text("INSERT INTO pool (id, salt) VALUES (1, :salt)"), {"salt": b"of the old one"})
    schema.open_ledger(new).close()
    with opened(new) as db:
        today = shape(db)
    assert at(old, tmp_path / "one", "backup", str(tmp_path / "b")).code == 0
    done = at(new, tmp_path / "two", "restore", str(tmp_path / "b"))
    assert done.code == 0, done.stderr
    assert "(0004) were brought to those of this version" in done.stderr
    with opened(new) as db, db.read() as c:
        assert c.execute(text("SELECT salt FROM pool")).scalar() == b"of the old one"
        assert schema.revision_in(c) == schema.REVISION
    with opened(new) as db:
        assert shape(db) == today


def at(place: str, home: Path, *arguments: str) -> Ran:
    """A command in a pool of its own, on this ledger."""
    return offload(clean_environment() | {"OFFLOAD_HOME": str(home), "OFFLOAD_DATABASE_URL": place}, *arguments)


def shape(db: Database) -> dict[str, tuple[set[str], set[str | None]]]:
    """table -> its columns, and its indexes."""
    with db.read() as c:
        there = inspect(c)
        return {
            name: ({column["name"] for column in there.get_columns(name)}, {i["name"] for i in there.get_indexes(name)})
            for name in there.get_table_names()
        }


@pytest.fixture
def no_dump(home: Path, tmp_path: Path) -> Path:
    """A folder that is said to hold a PostgreSQL ledger's backup, and holds something else."""
    folder = tmp_path / "no-dump"
    assert cli(home, "backup", str(folder)).code == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "ledger.db").rename(folder / "ledger.dump")
    files = {name.replace(".db", ".dump"): digest for name, digest in manifest["files"].items()}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"ledger": "postgresql", "files": files}))
    return folder


def test_another_programs_tables_are_not_restored_over(postgres: Postgres, no_dump: Path, tmp_path: Path) -> None:
    """A database whose `jobs` no release made keeps them."""
    place = postgres.create("anothers")
    with opened(place) as db, db.write() as c:
        c.execute(text("CREATE TABLE jobs (salary INTEGER)"))
    done = at(place, tmp_path / "two", "restore", str(no_dump))
    assert done.code == 1
    assert "no release of Offload made" in done.stderr
    with opened(place) as db, db.read() as c:
        assert inspect(c).get_table_names() == ["jobs"]
    postgres.drop("anothers")


def test_a_copy_that_cannot_be_read_drops_nothing(
    postgres: Postgres, no_dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pg_restore, or with a dump that it does not understand, the database keeps its tables."""
    place = postgres.create("kept")
    schema.open_ledger(place).close()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "pg_restore is not installed here" in at(place, tmp_path / "two", "restore", str(no_dump)).stderr
    monkeypatch.setenv("PATH", str(postgres.programs))
    assert "pg_restore failed: input file" in at(place, tmp_path / "two", "restore", str(no_dump)).stderr
    with opened(place) as db:
        assert schema.revision(db) == schema.REVISION
    postgres.drop("kept")


def test_a_password_is_no_argument(tmp_path: Path, postgres: Postgres) -> None:
    """Wherever the address has it, pg_dump gets it by its environment, which others cannot read."""
    place = postgres.create("guarded_dump")
    seen = tmp_path / "seen"
    (tmp_path / "programs").mkdir()
    program = tmp_path / "programs" / "pg_dump"
    program.write_text(f'#!/bin/sh\necho "$PGPASSWORD $*" >{seen}; exit 1\n')
    program.chmod(0o755)
    for address in (place.replace("offload@", "offload:se%20cret@"), f"{place}?password=se%20cret&connect_timeout=3"):
        environment = clean_environment() | {"OFFLOAD_HOME": str(tmp_path), "OFFLOAD_DATABASE_URL": address}
        assert offload(environment, "db", "upgrade").code == 0
        given = environment | {"PATH": f"{program.parent}:/usr/bin:/bin"}
        assert offload(given, "backup", str(tmp_path / "b")).code == 1
        assert seen.read_text().startswith("se cret --")
        assert seen.read_text().count("cret") == 1
    assert "connect_timeout=3" in seen.read_text()
    postgres.drop("guarded_dump")


def test_uploaded_files_come_along(home: Path, tmp_path: Path) -> None:
    """Files of the API are backed up, private, and put back; one that the ledger does not know is not put back."""
    pool = Pool(Settings(home=home))
    content = b'{"custom_id": "a"}\n' * 100_000
    kept = uploads.keep(pool, io.BytesIO(content), "lines.jsonl", "")
    pool.db.close()
    (home / "files" / "file-unknown").write_bytes(b"left by an upload that was cut short")
    (home / "files" / "file-x.partial").write_bytes(b"under way")
    done = cli(home, "backup", str(tmp_path / "b"))
    assert "2 uploaded files" in done.stderr
    other = tmp_path / "other"
    assert cli(other, "restore", str(tmp_path / "b")).code == 0
    assert [path.name for path in (other / "files").iterdir()] == [kept.id]
    put = other / "files" / kept.id
    assert put.read_bytes() == content
    assert (put.stat().st_mode & 0o777, put.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    (tmp_path / "b" / "files" / kept.id).write_bytes(b"another")
    assert "not what was backed up" in cli(tmp_path / "third", "restore", str(tmp_path / "b")).stderr


def test_a_running_pools_home_is_left_alone(home: Path, tmp_path: Path) -> None:
    """While roles run on the ledger nothing is put back."""
    from tasks.ledger import ticks

    assert cli(home, "backup", str(tmp_path / "b")).code == 0
    pool = Pool(Settings(home=home))
    ticks.tick(pool.db, "sweep", {})
    pool.db.close()
    done = cli(home, "restore", str(tmp_path / "b"))
    assert done.code == 1
    assert "stop it, then restore" in done.stderr


def test_a_restore_that_is_broken_off_can_be_done_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger comes last: until it is there the pool is empty, and the next restore goes through."""
    pool = Pool(Settings(home=home))
    kept = uploads.keep(pool, io.BytesIO(b'{"custom_id": "a"}\n'), "lines.jsonl", "")
    pool.db.close()
    assert cli(home, "backup", str(tmp_path / "b")).code == 0
    other = Settings(home=tmp_path / "other")

    def no_room(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(copying, "put_back", no_room)
        with pytest.raises(PoolError, match="No space left"):
            restore(other, tmp_path / "b")
    assert not (other.home / "ledger.db").exists()
    restore(other, tmp_path / "b")
    assert (other.home / "files" / kept.id).exists()
    assert (other.home / "offload.yaml").exists()
