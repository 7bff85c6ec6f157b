"""A database's error is told in words that help, and never with what a row holds."""

from __future__ import annotations

import errno

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError

from api.commands import _report
from tasks.ledger.database import Database
from tests.support.postgres import Postgres

FULL = "the ledger's PostgreSQL has no connection left"
REFUSED = 'connection failed: connection to server at "127.0.0.1", port 5432 failed: '
SAID = {
    "consuming input failed: server closed the connection unexpectedly\n\tThis probably means the server": "closed the",
    f"{REFUSED}FATAL:  sorry, too many clients already": FULL,
    f"{REFUSED}FATAL:  remaining connection slots are reserved for roles with SUPERUSER": FULL,
    f"{REFUSED}Connection refused\n\tIs the server running on that host?": "cannot be reached",
}


@pytest.mark.parametrize(("said", "words"), SAID.items(), ids=range(len(SAID)))
def test_what_postgresql_says(said: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line of ours, with what a person can do."""
    assert _report(OperationalError("SELECT 1", None, psycopg.OperationalError(said))) == 1
    told = capsys.readouterr().err
    assert words in told
    assert "unexpected Operational" not in told
    assert told.count("\n") == 1


def test_a_full_disk(capsys: pytest.CaptureFixture[str]) -> None:
    """Results that find no room in their file are no fault of the program's."""
    assert _report(OSError(errno.ENOSPC, "No space left on device")) == 1
    told = capsys.readouterr().err
    assert told.startswith("offload: a disk is full")
    assert told.count("\n") == 1


def test_a_detail_is_not_shown(postgres: Postgres, capsys: pytest.CaptureFixture[str]) -> None:
    """PostgreSQL's further lines quote the row; its first one says what is wrong."""
    db = Database(postgres.url("postgres"))
    twice = text("WITH a AS (SELECT 'private text' AS t) INSERT INTO once SELECT t FROM a UNION ALL SELECT t FROM a")
    with db.write() as c:
        c.execute(text("CREATE TEMPORARY TABLE once (t TEXT PRIMARY KEY) ON COMMIT DROP"))
        with pytest.raises(DBAPIError) as raised:
            c.execute(twice)
    db.close()
    assert "private text" in str(raised.value.orig)
    assert _report(raised.value) == 1
    told = capsys.readouterr().err
    assert "unexpected IntegrityError (duplicate key value violates unique constraint" in told
    assert "private" not in told
    assert told.count("\n") == 1
