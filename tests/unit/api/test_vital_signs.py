"""Frozen roles are told from living ones."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
import redis

from api.embedded.vital_signs import VitalSigns
from tasks.ledger import claims, ticks
from tasks.ledger.claims import Identity
from tasks.ledger.schema import open_ledger
from tests.support.pool import Redis

ME = Identity("here", "sim", "r", 1)
SILENT = 10.0


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, moved by the test."""
    clock = [1000.0]
    monkeypatch.setattr("api.embedded.vital_signs.time.monotonic", lambda: clock[0])
    return clock


def test_a_role_that_touches_no_file_is_frozen(tmp_path: Path, now: list[float]) -> None:
    """A role whose sign is a file lives while it touches it, from its start on; a missing file is no sign of life."""
    server = Redis(tmp_path / "redis")
    db = open_ledger(tmp_path / "ledger.db")
    file = tmp_path / "sign"
    signs = VitalSigns(db, server.url, "here", SILENT, {"flower": file})
    started = {"flower": 1000.0}

    def live(*, touch: bool) -> list[str]:
        now[0] += SILENT / 2 + 0.1
        if touch:
            file.touch()
            os.utime(file, ns=(0, int(now[0])))  # a clock that is wrong, and moves
        return signs.frozen(started)

    try:
        assert [live(touch=False) for _ in range(3)] == [[], [], ["flower"]]
        assert [live(touch=True) for _ in range(4)] == [[]] * 4
        assert [live(touch=False) for _ in range(2)] == [[], ["flower"]]
        started["flower"] = now[0]
        assert live(touch=False) == [], "just started again"
    finally:
        server.close()
        db.close()


def test_a_full_disk_freezes_nobody(tmp_path: Path, now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody can write the ledger, and Redis refuses every command, roles live; a worker still has its time."""
    server = Redis(tmp_path / "redis")
    db = open_ledger(tmp_path / "ledger.db")
    claims.register(db, ME, ["small"], 1)
    signs = VitalSigns(db, server.url, "here", SILENT)
    started = {"worker sim": 1000.0, "beat": 1000.0, "redis": 1000.0}

    ticks.tick(db, "sweep", {})
    assert signs.frozen(started) == []

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def refuses(_: object) -> None:
        raise redis.ResponseError("MISCONF Errors writing to the AOF file: No space left on device")

    def look() -> list[str]:
        now[0] += SILENT / 2 + 0.1
        return signs.frozen(started)

    try:
        with monkeypatch.context() as disk:
            disk.setattr("api.embedded.vital_signs.os.fsync", full)
            disk.setattr(redis.Redis, "ping", refuses)
            assert [look() for _ in range(6)] == [[]] * 6
        assert look() == [], "there is room again, and its heartbeat is not due yet"
        assert [look() for _ in range(2)] == [["worker sim"], ["worker sim", "beat"]], "which waited for Redis as well"
    finally:
        server.close()
        db.close()


def test_a_role_that_froze_as_it_wrote_is_frozen(tmp_path: Path, now: list[float]) -> None:
    """It holds the lock of SQLite, for which everybody else waits: it is named all the same, and at once."""
    server = Redis(tmp_path / "redis")
    db, its = (open_ledger(tmp_path / "ledger.db") for _ in range(2))
    claims.register(db, ME, ["small"], 1)
    signs = VitalSigns(db, server.url, "here", SILENT)
    try:
        with its.write():
            assert signs.frozen({"worker sim": 1000.0}) == []
            for _ in range(2):
                now[0] += SILENT / 2 + 0.1
                found = signs.frozen({"worker sim": 1000.0})
            assert found == ["worker sim"]
    finally:
        server.close()
        db.close()
        its.close()


def test_a_role_without_a_sign_for_long_is_frozen(tmp_path: Path, now: list[float]) -> None:
    """A worker that beats and a beat that ticks live; the one that stops is named, and so is a Redis that is gone."""
    server = Redis(tmp_path / "redis")
    db = open_ledger(tmp_path / "ledger.db")
    claims.register(db, ME, ["small"], 1)
    claims.register(db, Identity("there", "sim", "r", 2), ["small"], 1)  # another machine's, which says nothing more
    signs = VitalSigns(db, server.url, "here", SILENT)
    started = {"worker sim": 1000.0, "beat": 1000.0, "redis": 1000.0, "simulator": 1000.0}

    def live(*, worker: bool, beat: bool) -> list[str]:
        now[0] += SILENT / 2 + 0.1
        time.sleep(0.01)  # so that the database's clock moves
        if worker:
            claims.report(db, ME, in_flight=0, serving=["small"], consuming=True, health="healthy", detail="")
        if beat:
            ticks.tick(db, "sweep", {})
        return signs.frozen(started)

    try:
        for _ in range(6):
            assert live(worker=True, beat=True) == []
        assert live(worker=False, beat=True) == []
        assert live(worker=False, beat=True) == ["worker sim"]
        started["worker sim"] = now[0]
        assert live(worker=False, beat=True) == [], "just started again"
        server.kill()
        assert live(worker=True, beat=False) == []
        assert live(worker=True, beat=False) == ["redis"], "beat cannot tick without it"
    finally:
        server.close()
        db.close()
