"""What befalls the ledger's database."""

from __future__ import annotations

import resource
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.chaos.strike import Strike

#: bytes of any file that a process on a full disk may still write
FULL = 4096


def gone(s: Strike) -> None:
    """13: PostgreSQL is stopped, or its backends are killed; of SQLite the file is locked for longer than a lease."""
    s.busy(s.site.nodes)
    s.struck_all()
    postgres = s.site.postgres
    if postgres is None:
        seconds = s.site.times.lease * s.random.uniform(1.0, 1.5)
        s.note = f"locked for {seconds:.1f} s"
        with _locked(s):
            time.sleep(seconds)
    elif s.random.random() < 0.4:
        s.note = f"{postgres.kill_backends('ledger')} backends killed"
    else:
        how, seconds = s.random.choice([signal.SIGINT, signal.SIGQUIT]), s.random.uniform(0, 1.3) * s.site.times.lease
        s.note = f"{how.name}, away {seconds:.1f} s"
        postgres.stop(how)
        time.sleep(seconds)
        postgres.start()
    s.healed()


def full_or_locked(s: Strike) -> None:
    """15: the disk is full, or another holds the lock: a clear error, no half-written batch."""
    full, seconds = s.random.random() < 0.6, s.random.uniform(0.3, 1.2)
    s.note = f"{'full' if full else 'locked'} for {seconds:.1f} s"
    s.busy(s.site.nodes)
    s.struck_all()
    if not full:
        with _locked(s):
            time.sleep(seconds)
    elif s.site.postgres is None:
        with _sqlite_full(s):
            _submit_by_hand(s)
            time.sleep(seconds)
    else:
        with _postgres_full(s):
            _submit_by_hand(s)
            time.sleep(seconds)
    s.healed()


def _submit_by_hand(s: Strike) -> None:
    """`offload submit` on a full disk: exit 1, one message, nothing kept."""
    name = f"full-{s.client.strike}-{s.random.randrange(10**9)}"
    made = s.client.prepared(name, 60)
    path: Path = s.site.folder / f"{name}.jsonl"
    path.write_bytes(s.client.lines(made.texts, "small"))
    limit = FULL if s.site.postgres is None else None
    status, words = s.site.command(["submit", str(path), "--name", name], limit)
    s.expect(status == 1, f"`offload submit` on a full disk ended with {status}")
    s.expect("disk" in words and "Traceback" not in words, f"`offload submit` on a full disk said {words[-200:]!r}")


@contextmanager
def _locked(s: Strike) -> Iterator[None]:
    if s.site.postgres is None:
        held = sqlite3.connect(s.site.folder / "ledger.db", isolation_level=None, timeout=20)
        held.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            held.rollback()
            held.close()
    else:
        with psycopg.connect(s.site.database_url) as c:
            c.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
            yield


@contextmanager
def _sqlite_full(s: Strike) -> Iterator[None]:
    """No process of the pool can make any file larger, as on a full disk; without being root."""
    before = _limit(s, lambda now: (FULL, now[1]))
    try:
        yield
    finally:
        _limit(s, lambda now: (before.get("any", resource.RLIM_INFINITY), now[1]))


def _limit(s: Strike, change: Callable[[tuple[int, int]], tuple[int, int]]) -> dict[str, int]:
    before = {}
    for role in s.site.roles:
        pid = role.pid  # read once: 0, which it may be the next moment, is this process
        if role.alive and pid:
            now = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            before["any"] = now[0]
            resource.prlimit(pid, resource.RLIMIT_FSIZE, change(now))
    return before


@contextmanager
def _postgres_full(s: Strike) -> Iterator[None]:
    """Inserts fail as they do where a table cannot grow (53100)."""
    with psycopg.connect(s.site.database_url, autocommit=True) as c:
        c.execute("UPDATE chaos_disk SET is_full = true")
        try:
            yield
        finally:
            c.execute("UPDATE chaos_disk SET is_full = false")


#: what makes PostgreSQL's tables as full as chaos_disk says
FULL_DISK = (
    "CREATE TABLE chaos_disk (is_full boolean NOT NULL)",
    "INSERT INTO chaos_disk VALUES (false)",
    "CREATE FUNCTION chaos_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "IF (SELECT is_full FROM chaos_disk) THEN RAISE EXCEPTION 'could not extend file: No space left on device' "
    "USING ERRCODE = '53100'; END IF; RETURN NULL; END $$",
    *(
        f"CREATE TRIGGER chaos_disk BEFORE INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION chaos_disk()"
        for table in ("batches", "jobs", "outputs", "calls", "slices")
    ),
)
