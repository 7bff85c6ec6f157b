"""Ten thousand jobs of which one in a hundred is audited: which, is known beforehand."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select

from tasks import sampling
from tasks.ledger import audits
from tasks.sampling import FIRST
from tasks.tables import PoolFacts
from tests.support.auditing import audited, settled
from tests.support.waiting import eventually
from workers.simulator import SimulatorConfig, in_thread

JOBS = 10_000
RATE = 0.01


def test_ten_thousand_jobs_are_sampled_as_predicted(tmp_path: Path) -> None:
    """The audited ids are the first of the stratum and those whose salted draw is below the rate: known beforehand."""
    with in_thread(SimulatorConfig(slots=256, loaded_limit=8)) as simulator, audited(tmp_path, simulator.url) as pool:
        jobs = [
            {"id": f"n-{i}", "category": "rewrite", "prompt": f"A note. ({i})", "privacy": "cloud_ok"}
            for i in range(JOBS)
        ]
        batch = pool.submit(jobs)
        with pool.db.read() as c:
            salt = c.execute(select(PoolFacts.__table__.c.salt)).scalar_one()  # type: ignore[attr-defined]
        first = {job["id"] for job in jobs[:FIRST]}
        drawn = {job["id"] for job in jobs[FIRST:] if sampling.draw(salt, batch, job["id"]) < RATE}
        pool.finished(batch, 120)
        eventually(lambda: settled(pool), "every audit is answered", 120)
        rows = audits.listed(pool.db, batch_id=batch, limit=JOBS)
        assert {row.line_id for row in rows} == first | drawn
        assert {row.line_id for row in rows if row.probability == 1} == first
        assert {row.probability for row in rows if row.line_id in drawn} == {RATE}
        assert 40 < len(drawn) < 180  # four standard deviations and more about 100
        assert len(rows) == len(first | drawn)
        assert {row.verdict for row in rows} == {"agree"}
        found = next(a for a in pool.cli("audit", "report", "--json").json["agreements"] if a["category"] == "rewrite")
        assert (found["n"], found["agreement"]) == (len(rows), 1.0)
        assert found["low"] < 0.99
        assert found["effective_n"] < found["n"]
        shown = {r["id"]: r["audit"] for r in pool.results(batch) if "audit" in r}
        assert set(shown) == first | drawn
        assert shown["n-0"] == {"verdict": "agree", "auditor": "judge-1", "state": "judged"}
        assert f"audits: {len(rows)} agree" in pool.cli("status", batch).text
