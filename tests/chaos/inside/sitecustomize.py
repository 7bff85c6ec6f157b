"""What the tests hold of a process from within: its clock, and its next commit to SQLite.

Python loads this before everything else when the folder is on PYTHONPATH; `tests.chaos` imports it first of all.
A file of 24 bytes, mapped by both sides, says what is wanted, and may change at any time:

    offset  double  seconds by which this process's clock is wrong
    trap    int     what happens at the next commit (TRAPS)
    wrote   int     which commits it waits for (RECORD, CLAIM, or both)
"""

import datetime
import mmap
import os
import signal
import sqlite3
import struct
import time
from typing import Any

LAYOUT = struct.Struct("<dii")
#: traps: the process is killed before or after its commit, or the commit fails
NONE, KILL_BEFORE, KILL_AFTER, FAIL, SPRUNG = range(5)
#: what a transaction wrote: results, a claim
RECORD, CLAIM = 1, 2
#: how SQL tells it
TELLS = {"INSERT INTO outputs": RECORD, "fence=(jobs.fence +": CLAIM}

_real_time, _real_time_ns = time.time, time.time_ns
_block: mmap.mmap | None = None


def attach(path: str) -> None:
    """Take orders from this file from now on."""
    global _block
    with open(path, "r+b") as file:
        _block = mmap.mmap(file.fileno(), LAYOUT.size)


def detach() -> None:
    """Take no orders."""
    global _block
    _block = None


def _offset() -> float:
    return 0.0 if _block is None else float(LAYOUT.unpack_from(_block)[0])


def shifted_time() -> float:
    """time.time by this process's clock."""
    return _real_time() + _offset()


def shifted_time_ns() -> int:
    """time.time_ns by this process's clock."""
    return _real_time_ns() + int(_offset() * 1e9)


class _AnyDatetime(type):
    """Every datetime is one of ours, those that C code made too."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _RealDatetime)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, _RealDatetime)


_RealDatetime = datetime.datetime


class _ShiftedDatetime(_RealDatetime, metaclass=_AnyDatetime):
    """A datetime whose now() is this process's clock; Celery's beat goes by it."""

    __slots__ = ()  # C extensions look at its size

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return _RealDatetime.now(tz) + datetime.timedelta(seconds=_offset())

    @classmethod
    def utcnow(cls) -> Any:
        return _RealDatetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(seconds=_offset())


class _Cursor(sqlite3.Cursor):
    """Tells its connection what is written, while a trap is set."""

    def execute(self, sql: str, *parameters: Any) -> Any:
        _note(self.connection, sql)
        return super().execute(sql, *parameters)

    def executemany(self, sql: str, *parameters: Any) -> Any:
        _note(self.connection, sql)
        return super().executemany(sql, *parameters)


def _note(connection: Any, sql: str) -> None:
    if _block is not None and LAYOUT.unpack_from(_block)[1]:
        for words, wrote in TELLS.items():
            if words in sql:
                connection.wrote |= wrote


class _Connection(sqlite3.Connection):
    """A connection whose commit may be trapped."""

    wrote = 0

    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)

    def commit(self) -> None:
        wrote, self.wrote = self.wrote, 0
        trap, on = LAYOUT.unpack_from(_block)[1:] if _block is not None else (NONE, 0)
        if trap in (NONE, SPRUNG) or not wrote & on:
            super().commit()
            return
        _spring()
        if trap == KILL_AFTER:
            super().commit()
        if trap in (KILL_BEFORE, KILL_AFTER):
            os.kill(os.getpid(), signal.SIGKILL)
        super().rollback()
        raise sqlite3.OperationalError("disk I/O error")


def _spring() -> None:
    assert _block is not None
    offset, _, on = LAYOUT.unpack_from(_block)
    LAYOUT.pack_into(_block, 0, offset, SPRUNG, on)


def _connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
    made: sqlite3.Connection = _real_connect(*arguments, **({"factory": _Connection} | options))
    return made


_real_connect = sqlite3.connect
_ShiftedDatetime.__name__ = _ShiftedDatetime.__qualname__ = "datetime"
_ShiftedDatetime.__module__ = "datetime"
time.time, time.time_ns = shifted_time, shifted_time_ns
datetime.datetime = _ShiftedDatetime  # type: ignore[misc]
sqlite3.connect = sqlite3.dbapi2.connect = _connect  # type: ignore[assignment]
if _path := os.environ.get("CHAOS_STRINGS"):
    attach(_path)
