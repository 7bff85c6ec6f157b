"""doctor --deep: each way in which a ledger can be damaged is named, and what can be mended is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from api.use_cases.deep import examine_deep
from api.use_cases.doctor import Finding
from api.use_cases.pool import Pool
from tasks.ledger import audits, endings, invariants, sweeping
from tasks.settings import Settings
from tasks.states import JobState
from tasks.tables import Batch
from tests.unit.databases import ClockedDatabase
from tests.unit.ledgers import REGISTRY, Ledger, outcome

JOB = "(SELECT min(id) FROM jobs WHERE state = '{0}')"
DONE, RUNNING, SENT, QUEUED, FAILED = map(JOB.format, ("done", "running", "dispatched", "queued", "failed"))


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest) -> Ledger:
    """A ledger in which there is something of everything; nobody checks it after the test."""
    db: ClockedDatabase = request.getfixturevalue(f"{request.param}_db")
    made = Ledger(db)
    made.submit(8, name="worked on")
    me = made.worker(capacity=3)
    made.fill()
    one, two, three, *_ = made.claim(me, slices=[s[0] for s in made.sender.slices[:2]])
    made.record(outcome(one), outcome(two, JobState.FAILED, error_code="x"))
    audits.choose(db)
    endings.cancel(db, made.submit(2, name="cancelled"))
    made.submit(1, name="needs nobody")
    assert three
    return made


@pytest.fixture
def pool(ledger: Ledger, tmp_path: Path) -> Pool:
    """The ledger as commands see it."""
    made = Pool(Settings(home=tmp_path, time_divisor=1000))
    made.__dict__["db"] = ledger.db
    return made


def deep(pool: Pool, *, fix: bool = False) -> dict[str, Finding]:
    """What is broken, by what was looked at."""
    return {f.check: f for f in examine_deep(pool, lambda *_: None, fix=fix) if not f.ok}


def damage(db: ClockedDatabase, sql: str) -> None:
    """Change rows as no transaction of ours would, past every constraint between tables."""
    raw = db.engine.raw_connection()
    try:
        cursor = raw.cursor()
        cursor.execute("SET session_replication_role = replica" if db.is_postgres else "PRAGMA foreign_keys = OFF")
        for statement in sql.split(";"):
            cursor.execute(statement)
        cursor.execute("SET session_replication_role = DEFAULT" if db.is_postgres else "PRAGMA foreign_keys = ON")
        raw.commit()
    finally:
        raw.close()


@dataclass(frozen=True)
class Damage:
    """A damage: what names it, and whether it can be mended."""

    sql: str
    check: str
    words: str
    mends: bool = False


CALL = (
    "INSERT INTO calls (job_id, batch_id, fence, category, model_class, provider, node, model_asked, started_at,"
    " duration_ms, load_ms, first_token_ms, tokens_in, tokens_out, leaked, stale)"
    " SELECT job_id, batch_id, fence + {0}, category, model_class, provider, node, model_asked, started_at,"
    " 0, 0, 0, 0, 0, leaked, stale FROM calls"
)
DAMAGES = {
    "a counter": Damage("UPDATE batches SET done = done + 1", "counters of batches", "done says 2, there are 1", True),
    "a total": Damage("UPDATE batches SET total = 7", "counters of batches", "total says 7, there are 8", True),
    "closed too early": Damage(
        "UPDATE batches SET state = 'finished', finished_at = 1 WHERE name = 'worked on'",
        "counters of batches", "it is finished, and 6 jobs have not ended", True,
    ),
    "never closed": Damage(
        "UPDATE batches SET state = 'open', finished_at = NULL WHERE name = 'cancelled'",
        "counters of batches", "it is open, and every job has ended", True,
    ),
    "a lost slice": Damage("DELETE FROM slices", "slices of jobs", "line", True),
    "no slice": Damage(f"UPDATE jobs SET slice_id = NULL WHERE id = {SENT}", "slices of jobs", "line", True),
    "a slice too many": Damage(f"UPDATE jobs SET slice_id = 'x' WHERE id = {QUEUED}", "slices of jobs", "line", True),
    "no lease": Damage(f"UPDATE jobs SET lease_until = NULL WHERE id = {RUNNING}", "leases", "line", True),
    "a lease too many": Damage(f"UPDATE jobs SET lease_until = 5 WHERE id = {QUEUED}", "leases", "line", True),
    "no end": Damage(f"UPDATE jobs SET finished_at = NULL WHERE id = {FAILED}", "ends", "line 2"),
    "an unknown state": Damage(f"UPDATE jobs SET state = 'lost' WHERE id = {FAILED}", "states", "line 2"),
    "a lost answer": Damage("DELETE FROM outputs", "answers", "line 1"),
    "an answer too many": Damage("UPDATE outputs SET job_id = job_id + 1", "answers too many", "line 2"),
    "an answer of another fence": Damage("UPDATE outputs SET fence = 9", "fences", "line 1"),
    "too many attempts": Damage(f"UPDATE jobs SET attempts = 99 WHERE id = {DONE}", "attempts", "line 1"),
    "two calls": Damage(CALL.format(0), "calls", "line 1"),
    "a call ahead": Damage(CALL.format(5), "fences of calls", "line 1"),
    "no batch": Damage("DELETE FROM batches WHERE name = 'needs nobody'", "batches of jobs", "line 1"),
    "no body": Damage(f"DELETE FROM bodies WHERE job_id = {QUEUED}", "bodies", "line"),
    "a stray body": Damage("INSERT INTO bodies VALUES (4711, '')", "jobs of bodies", "job 4711"),
    "a stray answer": Damage("INSERT INTO outputs VALUES (4711, 1, '')", "jobs of answers", "job 4711"),
    "a stray sample": Damage("INSERT INTO samples VALUES (4711, 's', 0, 0)", "jobs of samples", "job 4711"),
    "a stray audit": Damage(
        "INSERT INTO audits (job_id, batch_id, stratum, category, model_class, model, probability, state, asked_job_id,"
        " created_at) VALUES (4711, '', '', '', '', '', 1, 'asked', 4712, 0)",
        "jobs that ask auditors", "job 4712",
    ),
    "a batch to wait for": Damage(
        "INSERT INTO dependencies SELECT id, 'batch_gone' FROM batches WHERE name = 'needs nobody'",
        "batches that others name", "waits for batch_gone",
    ),
    "a batch to retry": Damage(
        "UPDATE batches SET retry_of = 'batch_gone' WHERE name = 'needs nobody'",
        "batches that others name", "is a retry of batch_gone",
    ),
    "an empty slice": Damage(
        "INSERT INTO slices VALUES ('empty', 'b', 'small', 0, 1, {false}, 0)", "what the sweep mends", "slice empty"
    ),
    "a late lease": Damage(
        f"UPDATE jobs SET lease_until = 1 WHERE id = {RUNNING}", "what the sweep mends", "the lease of job"
    ),
}  # fmt: skip


def test_nothing_is_wrong_with_a_ledger_at_work(pool: Pool) -> None:
    """A ledger with jobs in every state is whole, and --fix changes nothing."""
    assert deep(pool) == {}
    assert deep(pool, fix=True) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_named_and_mended_where_that_is_safe(name: str, ledger: Ledger, pool: Pool) -> None:
    """What is wrong is said with its place and a fix; --fix mends what can be mended, and leaves the rest as it was."""
    one = DAMAGES[name]
    damage(ledger.db, one.sql.replace("{false}", "false" if ledger.db.is_postgres else "0"))
    broken = deep(pool)
    assert f"ledger, {one.check}" in broken
    found = broken[f"ledger, {one.check}"]
    assert one.words in found.detail
    assert found.fix
    assert ("--fix" in found.fix) == one.mends
    left = deep(pool, fix=True)
    assert left == {} if one.mends else left[found.check] == found
    assert deep(pool) == left


def test_what_was_mended_goes_on(ledger: Ledger, pool: Pool) -> None:
    """Jobs that nobody would have looked for again are done in the end."""
    me = ledger.worker(capacity=8)
    damage(ledger.db, "DELETE FROM slices; UPDATE jobs SET lease_until = NULL WHERE state = 'running'")
    damage(ledger.db, "UPDATE batches SET state = 'finished', finished_at = 1, open = 0 WHERE state = 'open'")
    assert set(deep(pool)) == {f"ledger, {n}" for n in ("counters of batches", "slices of jobs", "leases")}
    assert deep(pool, fix=True) == {}
    ledger.wait(1)
    sweeping.take_back_expired(ledger.db, REGISTRY)
    ledger.sender.slices.clear()
    while ledger.fill():
        ledger.record(*map(outcome, ledger.claim(me)))
    assert {b.state for b in ledger.all(Batch)} == {"finished", "cancelled"}
    assert deep(pool) == {}


def test_pages_leave_nothing_out(ledger: Ledger, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger larger than a page is looked at whole."""
    monkeypatch.setattr(invariants, "JOBS", 2)
    monkeypatch.setattr("api.use_cases.deep.JOBS", 2)
    monkeypatch.setattr(invariants, "BATCHES", 1)
    damage(ledger.db, "UPDATE jobs SET attempts = 99; UPDATE batches SET total = 77")
    broken = deep(pool)
    assert "and 6 more" in broken["ledger, attempts"].detail
    assert broken["ledger, counters of batches"].detail.count("total says 77") == 3
