"""I1 to I7 and I9, from the ledger, the client's history and the simulators' logs; I8 is each strike's own (nemesis).

The ledger itself is made to tell on whoever writes to a terminal job or to a result that is there: by triggers, so that
nothing is missed between two looks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text

from tasks.ledger.database import Database
from tasks.states import LIVE, MOVES, TERMINAL
from tests.chaos.client import Client, Submission

#: attempts that any category here allows
MOST_ATTEMPTS = 3
#: how many of one kind are told
SHOWN = 5

_TERMINAL = ", ".join(f"'{s}'" for s in sorted(TERMINAL))
_MOVES = " OR ".join(f"(OLD.state = '{a}' AND NEW.state = '{b}')" for a, to in MOVES.items() for b in sorted(to))
_WRONG = f"OLD.state IN ({_TERMINAL}) OR (OLD.state <> NEW.state AND NOT ({_MOVES}))"
_TOLD = "INSERT INTO chaos_wrong (job_id, what) VALUES"


@dataclass(frozen=True)
class Wrong:
    """A promise that was broken. strike: in whose time. kind: lost, twice, or another invariant's number."""

    kind: str
    what: str
    strike: int | None = None
    jobs: int = 1


def watch(db: Database) -> None:
    """Let the ledger tell on itself."""
    with db.write() as c:
        c.execute(text("CREATE TABLE chaos_wrong (job_id BIGINT NOT NULL, what TEXT NOT NULL)"))
        for name, table, event, when, told in (
            ("moves", "jobs", "UPDATE", _WRONG, "(OLD.id, OLD.state || ' became ' || NEW.state)"),
            ("written", "outputs", "UPDATE", "1=1", "(OLD.job_id, 'its result was written again')"),
            ("deleted", "outputs", "DELETE", "1=1", "(OLD.job_id, 'its result was deleted')"),
        ):
            for statement in _trigger(db, name, table, event, when, told):
                c.execute(text(statement))


def _trigger(db: Database, name: str, table: str, event: str, when: str, told: str) -> Iterator[str]:
    if not db.is_postgres:
        yield f"CREATE TRIGGER chaos_{name} AFTER {event} ON {table} WHEN {when} BEGIN {_TOLD} {told}; END"
        return
    yield (
        f"CREATE FUNCTION chaos_{name}() RETURNS trigger LANGUAGE plpgsql AS "
        f"'BEGIN {_TOLD.replace(chr(39), chr(39) * 2)} {told.replace(chr(39), chr(39) * 2)}; RETURN NULL; END'"
    )
    yield (
        f"CREATE TRIGGER chaos_{name} AFTER {event} ON {table} FOR EACH ROW WHEN ({when}) "
        f"EXECUTE FUNCTION chaos_{name}()"
    )


class Calls:
    """The simulators' logs, read as they grow."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()
        self._read: dict[Path, int] = {}

    def again(self, paths: list[Path]) -> list[str]:
        """The prompts of the calls logged since the last look that had been asked before."""
        again = []
        for path in paths:
            for prompt in self._new(path):
                if self.of[prompt]:
                    again.append(prompt)
                self.of[prompt] += 1
        return again

    def _new(self, path: Path) -> Iterator[str]:
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read[path] = self._read.get(path, 0) + len(line)
                yield json.loads(line)["prompt"]


# --- after each strike -----------------------------------------------------------------------------------


def told(db: Database) -> list[Wrong]:
    """What the triggers have seen; each is told once."""
    with db.write() as c:
        rows = c.execute(text("SELECT job_id, what FROM chaos_wrong")).all()
        if rows:
            c.execute(text("DELETE FROM chaos_wrong"))
    return [Wrong("twice", f"I4: job {row.job_id}: {row.what}") for row in rows]


def fences(db: Database, after_call: int) -> list[Wrong]:
    """I2 and I3 of the jobs whose calls were recorded since."""
    return [
        *_rows(
            db,
            "twice",
            "I3: job {0} has fence {1}, its result {2}",
            "SELECT DISTINCT j.id, j.fence, o.fence FROM calls k JOIN jobs j ON j.id = k.job_id "
            "JOIN outputs o ON o.job_id = j.id WHERE k.id > :after AND o.fence <> j.fence",
            after=after_call,
        ),
        *_rows(
            db,
            "twice",
            "I2: job {0} has {1} answers that count",
            "SELECT k.job_id, count(*) FROM calls k WHERE k.error_code IS NULL AND NOT k.stale AND k.job_id IN "
            "(SELECT job_id FROM calls WHERE id > :after) GROUP BY k.job_id HAVING count(*) > 1",
            after=after_call,
        ),
    ]


def last_call(db: Database) -> int:
    """The newest call row."""
    with db.read() as c:
        return int(c.execute(text("SELECT coalesce(max(id), 0) FROM calls")).scalar_one())


# --- at the end ------------------------------------------------------------------------------------------


def whole(client: Client) -> list[Wrong]:
    """I1 to I7 over everything; the stream has stopped."""
    db = client.pool.db
    wrong = [*_kept(client), *_contradicted(client), *_uncertain(client), *told(db), *fences(db, 0)]
    live = ", ".join(f"'{s}'" for s in sorted(LIVE))
    answered = "'done', 'escalated'"
    wrong += _rows(
        db,
        "twice",
        "I2: job {0} is {1} and has {2} results",
        "SELECT j.id, j.state, count(o.job_id) FROM jobs j LEFT JOIN outputs o ON o.job_id = j.id "
        f"GROUP BY j.id, j.state HAVING (j.state IN ({answered})) <> (count(o.job_id) = 1)",
    )
    wrong += _rows(
        db,
        "I5",
        "I5: job {0} has {1} attempts",
        f"SELECT id, attempts FROM jobs WHERE attempts > {MOST_ATTEMPTS}",
    )
    wrong += _rows(
        db,
        "I6",
        "I6: batch {0} counts {1} done and {2} open, its jobs are {3} and {4}",
        "SELECT b.id, b.done, b.open, n.done, n.open FROM batches b JOIN (SELECT batch_id, "
        "sum(CASE WHEN state = 'done' THEN 1 ELSE 0 END) AS done, "
        f"sum(CASE WHEN state IN ({live}) THEN 1 ELSE 0 END) AS open FROM jobs GROUP BY batch_id) n "
        "ON n.batch_id = b.id WHERE b.done <> n.done OR b.open <> n.open",
    )
    wrong += _rows(
        db,
        "I6",
        "I6: job {0} has {1} tokens, the call that counts {2}",
        "SELECT j.id, j.tokens_out, sum(k.tokens_out) FROM jobs j JOIN calls k ON k.job_id = j.id AND NOT k.stale "
        "AND k.error_code IS NULL WHERE j.state = 'done' GROUP BY j.id, j.tokens_out "
        "HAVING sum(k.tokens_out) <> j.tokens_out",
    )
    wrong += _rows(
        db,
        "I6",
        "I6: a call of job {0} under fence {1} is there {2} times",
        "SELECT job_id, fence, count(*) FROM calls GROUP BY job_id, fence, started_at HAVING count(*) > 1",
    )
    return wrong


def _rows(db: Database, kind: str, words: str, query: str, **parameters: Any) -> list[Wrong]:
    with db.read() as c:
        rows = c.execute(text(query), parameters).all()
    return [Wrong(kind, words.format(*row)) for row in rows[:SHOWN]] + [
        Wrong(kind, f"and {len(rows) - SHOWN} more", jobs=len(rows) - SHOWN) for _ in range(len(rows) > SHOWN)
    ]


def _kept(client: Client) -> Iterator[Wrong]:
    """I1: each line of an acknowledged batch has one terminal row."""
    terminal = ", ".join(f"'{s}'" for s in sorted(TERMINAL))
    query = (
        "SELECT batch_id, count(*) AS rows, count(DISTINCT line_id) AS lines, "
        f"sum(CASE WHEN state IN ({terminal}) THEN 1 ELSE 0 END) AS ended FROM jobs GROUP BY batch_id"
    )
    with client.pool.db.read() as c:
        there = {row.batch_id: row for row in c.execute(text(query))}
    for submission in client.history.promised:
        row, n = there.get(submission.id), len(submission.texts)
        if row is None or row.lines < n or row.ended < n:
            kept = min(row.lines, row.ended) if row else 0
            yield Wrong("lost", f"I1: {submission.id}: {kept} of {n} ended", submission.strike, n - kept)
        elif row.rows > n:
            yield Wrong("twice", f"I1: {submission.id}: {row.rows} rows for {n} jobs", submission.strike, row.rows - n)


def _contradicted(client: Client) -> Iterator[Wrong]:
    """What is read twice is the same."""
    for submission in client.history.promised:
        client.results(submission)
    for submission, line in client.history.contradictions:
        yield Wrong("twice", f"I2: {submission.id} {line}: two different results were read", submission.strike)


def _uncertain(client: Client) -> Iterator[Wrong]:
    """I7: a submit that failed is there once, whole, or not at all."""
    names: dict[str, Submission] = {s.name: s for s in client.history.submissions if s.id is None}
    query = text(
        "SELECT b.name, b.id, b.state, b.total, count(j.id) AS rows FROM batches b "
        "LEFT JOIN jobs j ON j.batch_id = b.id WHERE b.name IS NOT NULL GROUP BY b.name, b.id, b.state, b.total"
    )
    with client.pool.db.read() as c:
        rows = [row for row in c.execute(query) if row.name in names and row.state != "loading"]
    for name, times in Counter(row.name for row in rows).items():
        if times > 1:
            yield Wrong("twice", f"I7: the submit {name} is there {times} times", names[name].strike)
    for row in rows:
        n = len(names[row.name].texts)
        if row.rows != n:
            yield Wrong("twice", f"I7: {row.id} has {row.rows} of {n} jobs", names[row.name].strike)


def answers(submission: Submission, results: list[dict[str, Any]]) -> Counter[str]:
    """How many lines of a batch ended in each state."""
    return Counter(line["state"] for line in results)
