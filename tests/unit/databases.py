"""Databases that tests have one after another: a clock that stands still, and triggers that watch every write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, text
from sqlmodel import SQLModel

from tasks.ledger.database import Database
from tasks.ledger.schema import open_ledger
from tasks.states import TERMINAL

START = 1_000_000.0
#: PostgreSQL's database; milliseconds after which it looks for deadlocks
UNIT, DEADLOCK_MS = "unit", 1000
#: tables that are not emptied: what is in them was there before the first test
FACTS = {"pool"}

_ENDED = ", ".join(repr(s.value) for s in sorted(TERMINAL))
#: whatever writes it: every move of a job, and every write to what is never written to again
_TABLES = ("CREATE TABLE moves (was TEXT, becomes TEXT)", "CREATE TABLE touched (what TEXT, id TEXT)")
_SQLITE = (
    "CREATE TRIGGER watch_moves AFTER UPDATE OF state ON jobs WHEN OLD.state <> NEW.state"
    " BEGIN INSERT INTO moves VALUES (OLD.state, NEW.state); END",
    f"CREATE TRIGGER watch_jobs AFTER UPDATE ON jobs WHEN OLD.state IN ({_ENDED})"
    " BEGIN INSERT INTO touched VALUES ('job', OLD.id); END",
    "CREATE TRIGGER watch_outputs AFTER UPDATE ON outputs BEGIN INSERT INTO touched VALUES ('output', OLD.job_id); END",
    "CREATE TRIGGER watch_batches AFTER UPDATE ON batches WHEN OLD.finished_at IS NOT NULL AND OLD.state <> NEW.state"
    " BEGIN INSERT INTO touched VALUES ('batch', OLD.id); END",
)
_POSTGRES = (
    f"ALTER DATABASE {UNIT} SET deadlock_timeout = '{DEADLOCK_MS}ms'",
    "CREATE FUNCTION note_move() RETURNS trigger LANGUAGE plpgsql AS"
    " 'BEGIN INSERT INTO moves VALUES (OLD.state, NEW.state); RETURN NULL; END'",
    "CREATE FUNCTION note_touch() RETURNS trigger LANGUAGE plpgsql AS"
    " 'BEGIN INSERT INTO touched VALUES (TG_TABLE_NAME, to_json(OLD)->>TG_ARGV[0]); RETURN NULL; END'",
    "CREATE TRIGGER watch_moves AFTER UPDATE ON jobs FOR EACH ROW WHEN (OLD.state <> NEW.state)"
    " EXECUTE FUNCTION note_move()",
    f"CREATE TRIGGER watch_jobs AFTER UPDATE ON jobs FOR EACH ROW WHEN (OLD.state IN ({_ENDED}))"
    " EXECUTE FUNCTION note_touch('id')",
    "CREATE TRIGGER watch_outputs AFTER UPDATE ON outputs FOR EACH ROW EXECUTE FUNCTION note_touch('job_id')",
    "CREATE TRIGGER watch_batches AFTER UPDATE ON batches FOR EACH ROW"
    " WHEN (OLD.finished_at IS NOT NULL AND OLD.state <> NEW.state) EXECUTE FUNCTION note_touch('id')",
)


@contextmanager
def opened(place: str) -> Iterator[Database]:
    """The ledger, whatever its tables are."""
    db = Database(place)
    try:
        yield db
    finally:
        db.close()


class ClockedDatabase(Database):
    """A watched ledger whose clock stands still until it is told otherwise.

    Its engine is kept from test to test, and with it connections and compiled statements: most of what a test costs.
    """

    time = START

    def __init__(self, at: str | Path) -> None:
        open_ledger(at).close()
        super().__init__(at)
        self._kept = self.engine
        with self.write() as c:
            for statement in _TABLES + (_POSTGRES if self.is_postgres else _SQLITE):
                c.execute(text(statement))
        self.engine.dispose()  # what was set above is for new connections

    def now(self, connection: Connection) -> float:
        return self.time

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """Without a sync: nobody pulls the plug here."""
        with super().write(durable=False) as c:
            yield c

    def anew(self) -> None:
        """As it was when it was made: no rows, ids from 1, no listeners of a test, the first time."""
        self.time = START
        self.engine = self._kept.execution_options()  # shares everything but the listeners
        with self.write() as c:
            for statement in _wiping(self.is_postgres):
                c.exec_driver_sql(statement)


def _wiping(postgres: bool) -> list[str]:
    """Emptying a table of few rows is quicker than truncating it."""
    tables = [table for table in reversed(SQLModel.metadata.sorted_tables) if table.name not in FACTS]
    empty = [f"DELETE FROM {name}" for name in (*(table.name for table in tables), "moves", "touched")]
    if not postgres:
        return empty  # SQLite's ids start again by themselves
    counted = [t.name for t in tables if t.autoincrement_column is not None]
    anew = "SELECT " + ", ".join(f"setval('{name}_id_seq', 1, false)" for name in counted)
    return ["; ".join(["SET LOCAL session_replication_role = replica", *empty, anew])]  # no triggers, one way there
