"""`offload backup` and `offload restore`: a pool in the middle of its work, gone on with elsewhere."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from api.use_cases.pool import Pool
from tasks.ledger import reading, schema
from tasks.settings import Settings
from tests.support.cli import Ran, offload
from tests.support.pool import TestPool, clean_environment, running, simulated
from tests.support.postgres import Postgres
from tests.support.waiting import eventually
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

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
        done = here.cli("backup", str(folder), "--json")
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
        assert there.cli("doctor", "--deep").text.count("BROKEN") == 0


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


def test_a_backup_of_older_tables_says_what_to_do(home: Path, tmp_path: Path) -> None:
    """It is put back as it is, and the next command is named."""
    with closing(sqlite3.connect(home / "ledger.db")) as c, c:
        c.execute(f"UPDATE {schema.VERSIONS} SET version_num = '0001'")
    assert cli(home, "backup", str(tmp_path / "b")).code == 0
    done = cli(tmp_path / "other", "restore", str(tmp_path / "b"))
    assert done.code == 0
    assert "offload db upgrade" in done.stderr


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
