"""A scrape is answered in time whoever is away, and what was counted stays counted."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import insert, text

from api.exporting.exporter import WAIT_S, Exporter
from api.exporting.sources import Look
from tasks.ledger import endings, ticks
from tasks.ledger.database import Database
from tasks.ledger.schema import open_ledger
from tasks.settings import Times
from tasks.tables import CallRow
from tests.support.postgres import Postgres
from tests.support.waiting import eventually
from tests.unit.ledgers import Ledger
from tests.unit.tasks.ledger.test_arrivals import CALL
from tests.unit.workers.jobs import REGISTRY

calls = CallRow.__table__  # type: ignore[attr-defined]

#: seconds a scrape may take here, where others are busy beside it; to find out that nobody answers takes 5
BOUND_S = 4.0


class Scraped:
    """A collector in a registry, and its values."""

    def __init__(self, at: str | Path, broker_url: Callable[[], str | None] = lambda: None) -> None:
        self.collector = Exporter(at, broker_url, REGISTRY, Times())
        self._registry = CollectorRegistry()
        self._registry.register(self.collector)

    def value(self, name: str, **labels: str) -> float | None:
        """One value of a new scrape."""
        return self._registry.get_sample_value(name, labels)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a ledger that is not there yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    yield server.create("scraped")
    server.drop("scraped")


@pytest.fixture
def scraped(place: str) -> Iterator[Scraped]:
    """A collector of that ledger."""
    made = Scraped(place)
    yield made
    made.collector.close()


def put(db: Database, n: int = 1) -> None:
    """Calls."""
    with db.write() as c:
        c.execute(insert(calls), [CALL | {"job_id": 1}] * n)


ALL = {"provider": "gpu", "model_class": "small", "decision": "offload", "outcome": "ok"}


def test_counters_begin_at_nothing_and_follow_the_ledger(place: str, scraped: Scraped) -> None:
    """What was there before the first look is not counted; every later call, sweep and end is, once."""
    db = open_ledger(place)
    put(db, 3)
    ticks.tick(db, "sweep", {}, {"sweeps": 5, "leases": 1, "slices": 0})
    assert scraped.value("offload_ledger_up") == 1
    assert scraped.value("offload_calls_total", **ALL) == 0
    put(db, 2)
    ticks.tick(db, "sweep", {}, {"sweeps": 1, "leases": 2, "slices": 3})
    with db.write() as c:
        ticks.add(c, 1.0, ticks.ENDED, {"expired small": 4})
    assert scraped.value("offload_calls_total", **ALL) == 2
    assert scraped.value("offload_calls_total", **ALL) == 2
    found = [scraped.value(f"offload_{n}_total") for n in ("sweeps", "leases_expired", "slices_resent")]
    assert found == [1, 2, 3]
    assert scraped.value("offload_jobs_ended_total", state="expired", model_class="small") == 4
    db.close()


def test_a_ledger_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    """The scrape says that it is away, no file appears, and the first look after it is there begins."""
    made = Scraped(tmp_path / "ledger.db")
    assert made.value("offload_ledger_up") == 0
    assert list(tmp_path.iterdir()) == []
    open_ledger(tmp_path / "ledger.db").close()
    assert made.value("offload_ledger_up") == 1
    made.collector.close()


def test_an_older_ledger_is_left_alone(tmp_path: Path) -> None:
    """Tables of another version are not read."""
    db = open_ledger(tmp_path / "ledger.db")
    with db.write() as c:
        c.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    db.close()
    made = Scraped(tmp_path / "ledger.db")
    assert made.value("offload_ledger_up") == 0
    made.collector.close()


def test_a_restored_ledger_is_read_and_nothing_counts_twice(tmp_path: Path) -> None:
    """Another file in its place is noticed; its calls were there before, and what comes is counted."""
    at = tmp_path / "ledger.db"
    db = open_ledger(at)
    put(db, 2)
    db.close()
    shutil.copy(at, tmp_path / "backup.db")
    made = Scraped(at)
    assert made.value("offload_calls_total", **ALL) == 0
    db = open_ledger(at)
    put(db, 3)
    db.close()
    assert made.value("offload_calls_total", **ALL) == 3
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "backup.db").replace(at)
    assert made.value("offload_calls_total", **ALL) == 3
    db = open_ledger(at)
    put(db, 1)
    db.close()
    assert made.value("offload_calls_total", **ALL) == 4
    made.collector.close()


def test_a_postgresql_that_goes_is_away_and_its_counts_stay(postgres: Postgres) -> None:
    """Cut off in the middle it is up again with the next scrape or the one after, and no call is lost."""
    at = postgres.create("cut")
    made, db = Scraped(at), open_ledger(at)
    assert made.value("offload_calls_total", **ALL) == 0
    put(db, 2)
    assert made.value("offload_calls_total", **ALL) == 2
    postgres.kill_backends("cut")
    eventually(lambda: made.value("offload_ledger_up") == 1, "it is up again")
    put(Database(at), 1)
    eventually(lambda: made.value("offload_calls_total", **ALL) == 3, "the call is counted")
    db.close()
    postgres.drop("cut")
    began = time.monotonic()
    assert made.value("offload_ledger_up") == 0
    assert time.monotonic() - began < BOUND_S
    assert made.value("offload_calls_total", **ALL) == 3
    made.collector.close()


@pytest.fixture
def hole() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.slow
def test_what_never_answers_holds_no_scrape_up(hole: int) -> None:
    """A black hole for a ledger and another one for a Redis: both away, in time, scrape after scrape."""
    made = Scraped(f"postgresql://offload@127.0.0.1:{hole}/x", lambda: f"redis://127.0.0.1:{hole}/0")
    for _ in range(2):
        began = time.monotonic()
        assert made.value("offload_ledger_up") == 0
        assert time.monotonic() - began < BOUND_S
    assert made.value("offload_redis_up") == 0
    assert made.value("offload_sweeps_total") == 0
    made.collector.close()


def test_one_question_is_asked_at_a_time() -> None:
    """Scrapes that come while nobody answers wait for the same answer; no thread piles up behind another."""
    asked: list[int] = []
    free = threading.Event()

    def ask() -> int:
        asked.append(1)
        free.wait(30)
        return len(asked)

    look = Look("somebody", ask)
    for _ in range(3):
        look.begin()
        assert look.answer(time.monotonic() + 0.02) is None
    free.set()
    assert look.answer(time.monotonic() + 10) == 1
    look.begin()
    assert look.answer(time.monotonic() + 10) == 2


def test_a_dear_question_is_asked_seldom() -> None:
    """It rests for a multiple of what it took, and the answer of before stands meanwhile."""
    asked: list[int] = []

    def ask() -> int:
        time.sleep(0.05)
        asked.append(1)
        return len(asked)

    look = Look("somebody", ask, rest=1_000.0)
    for _ in range(3):
        look.begin()
        assert look.newest(time.monotonic() + 10) == 1


def test_a_fault_of_ours_spares_the_other_figures() -> None:
    """A look that fails is no answer, and the next one asks again."""
    answers: Iterator[int | Exception] = iter([ValueError("a prompt"), 7])

    def ask() -> int:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    look = Look("somebody", ask)
    look.begin()
    assert look.answer(time.monotonic() + 10) is None
    look.begin()
    assert look.answer(time.monotonic() + 10) == 7


def test_the_collector_is_registered_without_asking(tmp_path: Path) -> None:
    """Its names are known at once, so that a scrape of some metrics is possible."""
    began = time.monotonic()
    made = Scraped(tmp_path / "ledger.db")
    assert time.monotonic() - began < WAIT_S / 2
    names = {metric.name for metric in made.collector.describe()}
    assert {"offload_jobs", "offload_calls", "offload_wait_seconds"} <= names


def test_a_cancelled_batch_is_counted(ledger: Ledger) -> None:
    """Jobs that were cancelled are ended, by class."""
    at = ledger.db.path
    assert at is not None
    made = Scraped(at)
    assert made.value("offload_jobs", state="queued", model_class="small") == 0
    batch = ledger.submit(3)
    eventually(lambda: made.value("offload_jobs", state="queued", model_class="small") == 3, "they wait")
    endings.cancel(ledger.db, batch)
    assert made.value("offload_jobs_ended_total", state="cancelled", model_class="small") == 3
    made.collector.close()
