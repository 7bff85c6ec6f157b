"""Deadlines as people write them."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

import api.commands.submit  # noqa: F401  so that no test waits for it
from api.commands import run_cli
from api.commands.deadlines import understood
from tasks.ledger.schema import open_ledger
from tasks.tables import Batch
from tests.support.waiting import eventually

HOUR = 3600.0
#: seconds that reading standard input takes
SLOW_S = 1.0
#: the middle of Europe, by rules of its own: the system needs no list of zones for it
ZONE = "CET-1CEST,M3.5.0,M10.5.0/3"
NOW = datetime.fromisoformat("2031-05-01T17:00+02:00")


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine's zone, in summer two hours before UTC."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", ZONE)
        time.tzset()
        yield
    time.tzset()


SPANS = [("90", 90), ("1.5", 1.5), ("0", 0), ("45s", 45), ("30m", 0.5 * HOUR), ("2h", 2 * HOUR), (" 2 h ", 2 * HOUR)]


@pytest.mark.parametrize(("text", "seconds"), [*SPANS, ("1d", 24 * HOUR)])
def test_spans(text: str, seconds: float) -> None:
    """Seconds from the submit, whenever that is."""
    assert understood(text, NOW) == seconds


MOMENTS = [
    ("18:30", "2031-05-01T18:30+02:00"),
    ("16:00", "2031-05-02T16:00+02:00"),
    ("16:30Z", "2031-05-01T16:30Z"),
    ("2031-05-01T18:00", "2031-05-01T18:00+02:00"),
    ("2031-05-01T18:00+05:00", "2031-05-01T18:00+05:00"),
    ("2031-05-02", "2031-05-02T00:00+02:00"),
    ("2031-05-01T18:00:00Z", "2031-05-01T18:00Z"),
    ("2031-12-01T18:00", "2031-12-01T18:00+01:00"),
]


@pytest.mark.parametrize(("text", "moment"), MOMENTS)
def test_moments(text: str, moment: str) -> None:
    """Times of day (the next such one) and dates; without a zone they are local, by their own date's offset."""
    assert understood(text, NOW) == datetime.fromisoformat(moment)


def test_the_next_time_of_day_over_a_change_of_clocks() -> None:
    """Tomorrow's 18:30 is what a clock shows then, 25 hours later."""
    eve = datetime.fromisoformat("2031-10-25T18:30+02:00")
    assert understood("18:30", eve) == eve + timedelta(hours=25)


NO_TIMES = ["", "soon", "-5", "nan", "inf", "1e3", "2w", "25:00", "2031-13-01", "٣", "0001-01-01"]


@pytest.mark.parametrize("text", NO_TIMES)
def test_what_is_not(text: str) -> None:
    """Anything else is no time, nor is a year that no system's clock has."""
    assert understood(text, NOW) is None


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pool that nothing was done in, and a producer that takes its time: SLOW_S."""

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            until = time.monotonic() + SLOW_S
            eventually(lambda: time.monotonic() > until, "the producer says something")
            return super().read(size)

    monkeypatch.setenv("OFFLOAD_HOME", str(tmp_path))
    lines = Slow(b'{"category": "summarize", "prompt": "a text"}\n')
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=lines))
    return tmp_path


def deadlines(home: Path) -> list[float]:
    """Those of the batches there are, in unix seconds."""
    db = open_ledger(home / "ledger.db")
    with db.read() as c:
        found = list(c.execute(Batch.__table__.select()).all())  # type: ignore[attr-defined]
    db.close()
    return [row.deadline_at for row in found]


def test_a_moment_stays_where_it_is_while_standard_input_is_read(home: Path) -> None:
    """What expires at 18:30 does so, however long its producer took."""
    moment = datetime.now(UTC) + timedelta(hours=1)
    assert run_cli(["submit", "-", "--deadline", moment.isoformat()]) == 0
    assert deadlines(home) == [pytest.approx(moment.timestamp(), abs=0.9 * SLOW_S)]


@pytest.mark.slow
def test_a_moment_that_passes_meanwhile_is_told(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is submitted that would expire at once."""
    monkeypatch.setattr(sys.modules[__name__], "SLOW_S", 3.0)  # the option is understood within it
    moment = datetime.now(UTC) + timedelta(seconds=SLOW_S)
    assert run_cli(["submit", "-", "--deadline", moment.isoformat()]) == 2
    assert "the deadline has passed meanwhile; nothing was submitted" in capsys.readouterr().err
    assert deadlines(home) == []


def test_a_span_begins_with_the_submit(home: Path) -> None:
    """Half an hour is half an hour from when all was read."""
    began = time.time()
    assert run_cli(["submit", "-", "--deadline", "30m"]) == 0
    (found,) = deadlines(home)
    assert found >= began + SLOW_S + HOUR / 2
