"""What a running pool says of its calls: who was asked and why, what it took and cost, and nothing of what was said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from tasks.ledger import reading, ticks
from tasks.tables import CallRow, Job
from tests.support.pool import TestPool, running, simulated
from tests.support.waiting import eventually
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

calls = CallRow.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]

SECRET = "zanzibar"
PRICE = {"usd": {"request": 0.5, "input": 1_000_000, "output": 2_000_000}}


@pytest.fixture(scope="module")
def simulator() -> Iterator[BackgroundSimulator]:
    """Home and cloud."""
    with in_thread(SimulatorConfig(slots=64, loaded_limit=8)) as made:
        yield made


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, simulator: BackgroundSimulator) -> Iterator[TestPool]:
    """Beat, a worker at home and a cloud worker with prices."""
    config = simulated(simulator.url)
    url = f"{simulator.url}/v1"
    cloud = {"name": "far", "kind": "openai", "url": url, "reach": "cloud", "prices": {"gemma3:4b": PRICE}}
    config["providers"].append(cloud)
    config["classes"]["cloud"] = {"serve": [{"provider": "far", "model": "gemma3:4b"}]}
    config["categories"] = {
        "strict": {"class": "small", "json": True, "attempts": 2, "on_failure": "escalate", "audit": 0},
        "plain": {"class": "small", "audit": 0},
    }
    with running(tmp_path_factory.mktemp("telemetry"), config) as made:
        made.start("beat")
        made.start("worker", "--provider", "far", "--node", "here")
        made.worker()
        eventually(lambda: _well(made, "far"), "the cloud worker takes work", 60)
        yield made


def _well(pool: TestPool, provider: str) -> bool:
    return any(w.provider == provider and w.health == "healthy" for w in reading.all_workers(pool.db))


def calls_of(pool: TestPool, batch_id: str) -> dict[str, list[Any]]:
    """A batch's calls by line id, in their order."""
    found: dict[str, list[Any]] = {}
    with pool.db.read() as c:
        query = select(calls, jobs.c.line_id).join(jobs, jobs.c.id == calls.c.job_id)
        for row in c.execute(query.where(calls.c.batch_id == batch_id).order_by(calls.c.id)):
            found.setdefault(row.line_id, []).append(row)
    return found


def job(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "category": "plain", "prompt": f"A note of {SECRET}.", "privacy": "cloud_ok"} | fields


@pytest.mark.slow
def test_a_call_says_what_was_decided_and_what_it_took(pool: TestPool) -> None:
    """At home, escalated by the policy, on to the cloud after failures, refused: each with its reason and its price."""
    batch = pool.submit(
        [
            job("home", app="shop"),
            job("rule", security=True),
            job("fails", category="strict", prompt=f"[[sim:badjson]] {SECRET}"),
            job("stays", security=True, privacy="local_only"),
        ]
    )
    pool.finished(batch)
    found = calls_of(pool, batch)

    (home,) = found["home"]
    assert (home.app, home.decision, home.reason, home.provider, home.ended) == ("shop", "offload", None, "sim", "done")
    assert home.considered == {"sim": "", "far": "the job is for class small, and it serves cloud"}
    assert (home.attempt, home.validated, home.sent, home.stale, home.cost_usd) == (1, True, True, False, 0)
    assert home.avoided_usd == pytest.approx(0.5 + home.tokens_in + 2 * home.tokens_out)
    assert 0 < home.queue_ms < 60_000

    (rule,) = found["rule"]
    assert (rule.decision, rule.provider, rule.ended, rule.avoided_usd) == ("escalate", "far", "escalated", 0)
    assert "security" in rule.reason
    assert rule.cost_usd == pytest.approx(0.5 + rule.tokens_in + 2 * rule.tokens_out)

    *tried, last = found["fails"]
    assert [(c.provider, c.attempt, c.decision, c.validated, c.error_code, c.ended) for c in tried[:2]] == [
        ("sim", n, "offload", False, "bad_json", None) for n in (1, 2)
    ]
    assert (last.provider, last.decision) == ("far", "fallback")
    assert last.reason.startswith("its answers failed")

    (stays,) = found["stays"]
    assert (stays.decision, stays.ended, stays.sent, stays.provider) == ("refuse", "refused", False, "")
    assert "security" in stays.reason
    assert SECRET not in str(found)


def test_an_app_is_said_for_a_whole_file(pool: TestPool) -> None:
    """--app holds for lines that name none; a retry keeps it; statistics are kept by it."""
    lines = b'{"category": "plain", "prompt": "x [[sim:400]]"}\n{"category": "plain", "prompt": "x", "app": "own"}\n'
    batch = pool.cli("submit", "-", "--app", "nightly", "--wait", "-o", "/dev/null", stdin=lines)
    assert batch.code == 6
    rows = {row["app"]: row for row in pool.cli("stats", "--by", "app", "--json").json["rows"]}
    assert (rows["nightly"]["jobs_failed"], rows["own"]["jobs_done"]) == (1, 1)
    again = pool.cli("retry", batch.stderr.split()[0], "--json")
    assert again.code == 0, again.stderr
    eventually(lambda: pool.batch(again.json["id"]).open == 0, "the retry ends")
    rows = {row["app"]: row for row in pool.cli("stats", "--by", "app", "--json").json["rows"]}
    assert rows["nightly"]["jobs_failed"] == 2
    for wrong in ("", " x", "a" * 65, "a\nb"):
        assert pool.cli("submit", "-", "--app", wrong, stdin=lines).code == 2


def test_beat_has_summed_something(pool: TestPool) -> None:
    """It does so when it starts, and not only at five past."""
    eventually(lambda: ticks.last_tick(pool.db, "rollup") is not None, "a rollup ran")
