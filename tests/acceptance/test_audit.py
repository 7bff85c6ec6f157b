"""The sampled audit, end to end: whom it chooses is known beforehand, and every opinion is counted once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from scheduler import audit
from tasks.checks import same_label
from tasks.ledger import audits
from tasks.sampling import ALARM, FIRST
from tasks.tables import Batch, Stratum
from tests.support.auditing import audited, settled, tick
from tests.support.pool import TestPool
from tests.support.waiting import eventually
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

RATE = 0.01


@pytest.fixture(scope="module")
def simulator() -> Iterator[BackgroundSimulator]:
    """The local models."""
    with in_thread(SimulatorConfig(slots=256, loaded_limit=8)) as made:
        yield made


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, simulator: BackgroundSimulator) -> Iterator[TestPool]:
    """A pool that is audited."""
    with audited(tmp_path_factory.mktemp("audit"), simulator.url) as made:
        yield made


def note(name: str, words: str = "A note.", **fields: Any) -> dict[str, Any]:
    return {"id": name, "category": "rewrite", "prompt": f"{words} ({name})", "privacy": "cloud_ok"} | fields


def test_equal_ids_in_two_batches_are_drawn_apart(pool: TestPool) -> None:
    """The same ids submitted again are chosen by another draw, and an old stratum has no first ones any more."""
    jobs = [note(f"t-{i}", system="Twice.") for i in range(2_000)]
    chosen = []
    for _ in range(2):
        batch = pool.submit(jobs)
        pool.finished(batch, 60)
        eventually(lambda: settled(pool), "audited", 60)
        chosen.append({row.line_id for row in audits.listed(pool.db, batch_id=batch, limit=5_000)})
    assert {f"t-{i}" for i in range(FIRST)} <= chosen[0]
    assert chosen[0] - {f"t-{i}" for i in range(FIRST)} != chosen[1]
    assert len(chosen[1]) < FIRST + 60


def test_opinions_are_shown_labelled_and_reported(pool: TestPool) -> None:
    """Disagreement and doubt are counted apart; a person's verdict counts in place of the auditor's."""
    system = "Opinions."
    batch = pool.submit(
        [note("good", system=system), note("bad", "WRONG", system=system), note("odd", "ODD", system=system)]
    )
    pool.finished(batch)
    eventually(lambda: settled(pool), "audited")
    rows = {row.line_id: row for row in audits.listed(pool.db, batch_id=batch)}
    assert {name: row.verdict for name, row in rows.items()} == {"good": "agree", "bad": "disagree", "odd": "unsure"}
    shown = pool.cli("audit", "show", str(rows["bad"].id))
    assert "WRONG (bad)" in shown.text
    assert "WRONG" not in shown.stderr
    before = stratum(pool, rows["bad"].stratum)
    assert (before.audits, before.statistic > 0) == (2, True)
    assert pool.cli("audit", "label", str(rows["bad"].id), "agree", "--reason", "it was fine").code == 0
    after = stratum(pool, rows["bad"].stratum)
    assert (after.audits, after.statistic) == (2, 0)
    again = next(a for a in pool.cli("audit", "list", "--batch", batch, "--json").json if a["line_id"] == "bad")
    assert (again["verdict"], again["reason"]) == ("agree", "it was fine")
    assert again["auditor"].startswith("person ")
    assert pool.cli("audit", "label", "999999", "agree").code == 5
    assert pool.cli("audit", "show", "0").code == 2
    assert "%" in pool.cli("audit", "report").text
    assert "to" in pool.cli("audit", "report").text


def stratum(pool: TestPool, id_: str) -> Any:
    table = Stratum.__table__  # type: ignore[attr-defined]
    with pool.db.read() as c:
        return c.execute(select(table).where(table.c.id == id_)).one()


def test_labels_are_compared_and_not_judged(pool: TestPool) -> None:
    """Of a classification the auditor gives the label, which agrees or does not with the one that was given."""
    asked = "Answer with one of: bug, feature. Ticket"
    jobs = [
        {"id": f"c-{i}", "category": "classify", "prompt": f"{asked} {i}", "privacy": "cloud_ok"} for i in range(12)
    ]
    batch = pool.submit(jobs)
    outputs = {r["id"]: r["output"] for r in pool.finished(batch)}
    eventually(lambda: settled(pool), "audited")
    verdicts = {row.line_id: row.verdict for row in audits.listed(pool.db, batch_id=batch)}
    assert verdicts == {name: "agree" if same_label(said, "Bug") else "disagree" for name, said in outputs.items()}
    assert set(verdicts.values()) == {"agree", "disagree"}


def test_private_jobs_are_audited_at_home_or_by_a_person(pool: TestPool) -> None:
    """What may not leave is shown to the second local model; what that model made itself, to a person."""
    batch = pool.submit(
        [note("private", privacy="local_only", system="Home."), note("own", category="code", privacy="lan_ok")]
    )
    pool.finished(batch)
    eventually(lambda: settled(pool), "audited")
    rows = {row.line_id: row for row in audits.listed(pool.db, batch_id=batch)}
    assert rows["private"].auditor == "qwen2.5-coder:7b"
    assert rows["private"].verdict in ("agree", "disagree", "unsure")
    assert (rows["own"].state, rows["own"].auditor) == ("person", None)
    assert str(rows["own"].id) in pool.cli("audit", "list", "--state", "person").text


def test_an_auditor_that_fails_leaves_it_to_a_person_and_harms_no_job(pool: TestPool) -> None:
    """The job stays done with its output, its batch is over, and its audit waits for a person."""
    batch = pool.submit([note("n", system="Fails.")])
    done = pool.finished(batch)[0]
    tick(pool)
    table = Batch.__table__  # type: ignore[attr-defined]
    with pool.db.read() as c:
        asking = c.execute(
            select(table.c.id).where(table.c.kind == "audit").order_by(table.c.created_at.desc())
        ).scalar()
    pool.cli("cancel", str(asking))
    eventually(lambda: settled(pool), "given up")
    (row,) = audits.listed(pool.db, batch_id=batch)
    assert row.state in ("person", "judged")  # the auditor may have been quicker
    again = pool.results(batch)[0]
    assert (done["state"], again["output"]) == ("done", done["output"])
    assert str(asking) not in pool.cli("batches", "--limit", "100").text
    assert str(asking) in pool.cli("batches", "--all", "--limit", "100").text


def test_a_drop_is_watched_more_closely_and_alarmed(pool: TestPool) -> None:
    """Disagreement upon disagreement: ten times the rate over half the level, an event at it, once."""
    batch = pool.submit([note(f"w-{i}", "WRONG", system="A drop.") for i in range(FIRST)])
    pool.finished(batch)
    eventually(lambda: settled(pool), "audited", 60)
    (row, *_) = audits.listed(pool.db, batch_id=batch)
    state = stratum(pool, row.stratum)
    assert (state.statistic, state.alarms) == (pytest.approx(ALARM), 1)
    alarms = pool.cli("audit", "report", "--json").json["alarms"]
    assert [a["stratum"] for a in alarms].count(row.stratum) == 1
    assert "ALARM: rewrite" in pool.cli("audit", "report").stderr
    later = pool.submit([note(f"l-{i}", system="A drop.") for i in range(300)])
    pool.finished(later)
    eventually(lambda: settled(pool), "audited", 60)
    chances = {row.probability for row in audits.listed(pool.db, batch_id=later, limit=1_000)}
    assert max(chances) == 10 * RATE


def test_a_run_that_died_between_two_steps_asks_nobody_twice(pool: TestPool) -> None:
    """The batch of questions that a dead run had opened is found again by its key."""
    batch = pool.submit([note("n", system="Dies.")])
    pool.finished(batch)
    audits.choose(pool.db)
    table = audits.audits
    registry = pool.pool.registry
    audit._ask(pool.db, registry, audits.chosen(pool.db, 10))
    with pool.db.write() as c:  # as if it had died before it wrote down whom it asked
        c.execute(update(table).where(table.c.batch_id == batch).values(state="chosen", asked_job_id=None))
    pool.pool.dispatch()
    eventually(lambda: settled(pool), "audited")
    asked = [b for b in pool.cli("batches", "--all", "--json", "--limit", "1").json if b["name"] == "audit"]
    assert [b["total"] for b in asked] == [1]


def test_a_wrong_configuration_of_audits_is_told(tmp_path: Path, pool: TestPool) -> None:
    """An auditor for private jobs that is a cloud's, or that nobody knows, is exit 2 with its place."""
    for name, words in (("cloud", "is a cloud's"), ("codr", "did you mean 'coder'?")):
        path = tmp_path / "offload.yaml"
        path.write_text(
            (pool.home / "offload.yaml").read_text().replace("private_class: coder", f"private_class: {name}")
        )
        pool.environment["OFFLOAD_CONFIG"] = str(path)
        ran = pool.cli("config", "check")
        del pool.environment["OFFLOAD_CONFIG"]
        assert ran.code == 2
        assert words in ran.stderr
        assert "audit.private_class" in ran.stderr
