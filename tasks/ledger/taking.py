"""Takes in the calls that the helpers made without a pool, from their log, each once."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import insert, select, update

from tasks.helper_log import Part, Place, call, parts
from tasks.ledger.database import Database, insert_new, retried
from tasks.tables import CallRow, TakenLog

#: lines one transaction takes in
CHUNK = 1_000

calls = CallRow.__table__  # type: ignore[attr-defined]
logs = TakenLog.__table__  # type: ignore[attr-defined]


def take_in(db: Database, path: Path, node: str) -> int:
    """Take in what is new in a log; how many calls. Raises OSError where it cannot be read.

    The calls and how far they were read are one commit. Of two that read at once, one goes on and the other ends.
    """
    name = f"{node}:{path}"
    with db.read() as c:
        row = c.execute(select(logs).where(logs.c.name == name)).first()
    known, read_at, version = Place(), 0.0, 0
    if row is not None:
        known, read_at, version = Place(row.place, tuple(row.tail)), row.taken_at, row.version
    total = 0
    for part in parts(path, known, read_at, CHUNK):
        taken = _take(db, name, node, version, part)
        if taken is None:
            return total
        total, version = total + taken, version + 1
    return total


@retried
def _take(db: Database, name: str, node: str, version: int, part: Part) -> int | None:
    """Take in a part; how many calls, None where another one has read on meanwhile."""
    rows = [row for line in part.lines if (row := call(line, node)) is not None]
    with db.write() as c:
        now = db.now(c)
        insert_new(c, logs, [{"name": name, "place": 0, "tail": [], "version": 0, "taken_at": now}])
        moved = {"place": part.place.at, "tail": list(part.place.tail), "version": version + 1, "taken_at": now}
        if c.execute(update(logs).where(logs.c.name == name, logs.c.version == version).values(moved)).rowcount != 1:
            return None
        if rows:
            c.execute(insert(calls), rows)
    return len(rows)
