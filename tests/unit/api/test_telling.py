"""Telemetry of calls that somebody waited for: what a server says odd harms its own row only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from api.use_cases import direct
from api.use_cases.direct import Telling
from api.use_cases.pool import Pool
from tasks.ledger import direct as records
from tasks.settings import Settings
from tasks.tables import CallRow, Job
from tests.support.logs import said_by
from tests.support.waiting import eventually
from tests.unit.ledgers import Ledger, new_jobs
from tests.unit.workers.jobs import ME, asked, claimed
from workers.backends import Reply
from workers.direct import Given
from workers.judging import answered_row


@pytest.fixture(params=["sqlite_db", "postgres_db"])
def ledger(request: pytest.FixtureRequest) -> Ledger:
    """A ledger in either database; calls without a job end none, so what holds of jobs is not looked at."""
    return Ledger(request.getfixturevalue(request.param))


@pytest.fixture
def telling(ledger: Ledger, tmp_path: Path) -> Telling:
    """One that writes to it; not started yet, so that all it is told is one group."""
    pool = Pool(Settings(home=tmp_path, redis_url="redis://127.0.0.1:1/0"))
    pool.db = ledger.db
    return Telling(pool)


def row(**said: Any) -> dict[str, Any]:
    """A call that was answered so."""
    job = claimed()
    return answered_row(job, ME, asked(job), 1.0, 1.0, Reply(**{"model": "m", "text": "x", **said})) | {"ended": None}


def test_a_row_that_cannot_be_written_is_left_out(telling: Telling, ledger: Ledger) -> None:
    """The rows beside it are written, those after it too, and the log names the kind of error only."""
    with said_by(direct) as logs:
        for said in ({"model": "first"}, {"model": "a-secret", "tokens_out": 2**64 - 1}, {"model": "second"}):
            telling.tell(row(**said))
        telling.start()
        eventually(lambda: len(ledger.all(CallRow)) == 2, "two of three are written", 10)
        telling.tell(row(model="third"))
        telling.stop()
    assert not telling.is_alive()
    assert sorted(str(one.model_served) for one in ledger.all(CallRow)) == ["first", "second", "third"]
    assert [set(line) for line in logs] == [{"event", "log_level", "error"}]
    assert "secret" not in str(logs)


def test_what_no_database_takes_as_text_is_written_out(telling: Telling, ledger: Ledger) -> None:
    """NUL and lone surrogates in the name of a model, of the call and of the answer that is kept."""
    telling.tell(row(model="a\0"))
    job = replace(*new_jobs(1), audit=1.0)
    given = Given(Reply("b\ud800", "x"), asked(claimed()), b'"x"', 1)
    telling.keep(job, given)
    telling.start()
    telling.stop()
    assert [one.model_served for one in ledger.all(CallRow)] == ["a\\u0000"]
    assert [one.served_model for one in ledger.all(Job)] == ["b\\ud800"]


def test_a_ledger_that_is_away_loses_no_row(telling: Telling, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing at all can be written, rows wait; none is taken for one that never can be."""
    write, tries = records._write, []

    def fails_first(*given: Any) -> None:
        tries.append(given)
        if len(tries) < 3:
            raise OperationalError("", None, Exception())
        write(*given)

    monkeypatch.setattr(records, "_write", fails_first)
    monkeypatch.setattr(direct, "RETRY_S", 0.01)
    telling.tell(row())
    telling.start()
    eventually(lambda: len(ledger.all(CallRow)) == 1, "the row is written in the end", 10)
    telling.stop()
