"""Status and results, as they are read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasks.errors import NotFound
from tasks.ledger import endings, reading, ticks
from tasks.states import JobState
from tests.unit.ledgers import Ledger, outcome

ANSWERED: dict[str, Any] = {"served_model": "m", "provider": "gpu", "node": "node", "tokens_in": 2, "tokens_out": 3}


def lines(ledger: Ledger, batch_id: str, state: str | None = None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in reading.results(ledger.db, batch_id, state)]


def test_a_result_line(ledger: Ledger) -> None:
    """An answer stands in its line as JSON, beside what served it."""
    batch_id, _, (job,) = ledger.running(1)
    ledger.record(outcome(job, output=b'{"a": [1, "x"]}', duration_ms=12.345, **ANSWERED))
    assert lines(ledger, batch_id) == [
        {
            "id": "j1",
            "category": "summarize",
            "state": "done",
            "privacy": "lan_ok",
            "output": {"a": [1, "x"]},
            "model": "m",
            "provider": "gpu",
            "node": "node",
            "attempts": 1,
            "tokens": {"in": 2, "out": 3},
            "duration_ms": 12.3,
        }
    ]


def test_a_line_without_an_answer_says_why(ledger: Ledger) -> None:
    """An error has a code and a message, and the output is null."""
    batch_id, _, (job,) = ledger.running(1)
    ledger.record(outcome(job, JobState.FAILED, attempts=3, error_code="bad_json", error_message="not JSON"))
    (line,) = lines(ledger, batch_id)
    assert (line["output"], line["state"], line["attempts"]) == (None, "failed", 3)
    assert line["error"] == {"code": "bad_json", "message": "not JSON"}


def test_results_are_what_has_ended_in_input_order(ledger: Ledger) -> None:
    """Whatever order jobs end in, their lines come in the order of the input; live ones do not come."""
    batch_id, _, held = ledger.running(5)
    for n in (4, 0, 2):
        ledger.record(outcome(held[n]))
    assert [line["id"] for line in lines(ledger, batch_id)] == ["j1", "j3", "j5"]


def test_results_in_the_order_of_recording(ledger: Ledger) -> None:
    """What is recorded later comes behind, so that a running batch is read on from the number of lines read so far."""
    batch_id, _, held = ledger.running(5)
    found: list[str] = []
    for n in (4, 0, 2):
        ledger.record(outcome(held[n], JobState.FAILED if n == 0 else JobState.DONE))
        ledger.wait(1)
        found += [json.loads(line)["id"] for line in reading.recorded(ledger.db, batch_id, None, len(found))]
    assert found == ["j5", "j1", "j3"]
    assert [json.loads(line)["id"] for line in reading.recorded(ledger.db, batch_id, None, 1, 1)] == ["j1"]
    assert [json.loads(line)["id"] for line in reading.recorded(ledger.db, batch_id, "done", 1)] == ["j3"]


def test_results_of_one_state(ledger: Ledger) -> None:
    """Only the failed, only the done."""
    batch_id, _, held = ledger.running(3)
    ledger.record(outcome(held[0]), outcome(held[1], JobState.FAILED), outcome(held[2]))
    assert [line["id"] for line in lines(ledger, batch_id, "failed")] == ["j2"]
    assert [line["id"] for line in lines(ledger, batch_id, "done")] == ["j1", "j3"]
    assert lines(ledger, batch_id, "expired") == []


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_pages_join_without_a_seam(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Every page size gives every result once."""
    monkeypatch.setattr(reading, "PAGE", 2)
    batch_id = ledger.submit(n)
    endings.cancel(ledger.db, batch_id)
    assert [line["id"] for line in lines(ledger, batch_id)] == [f"j{i + 1}" for i in range(n)]


def test_a_reader_holds_nobody_up(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two pages results are recorded, and the reader sees them."""
    monkeypatch.setattr(reading, "PAGE", 1)
    batch_id, _, held = ledger.running(2)
    ledger.record(outcome(held[0]))
    reader = reading.results(ledger.db, batch_id)
    next(reader)
    ledger.record(outcome(held[1]))
    assert json.loads(next(reader))["id"] == "j2"


def test_a_batch_that_is_not_there(ledger: Ledger) -> None:
    """The error says what to do."""
    with pytest.raises(NotFound, match="offload batches"):
        reading.batch(ledger.db, "batch_x")
    assert lines(ledger, "batch_x") == []


def test_the_newest_batches_come_first(ledger: Ledger) -> None:
    """No more than asked for."""
    ids = []
    for _ in range(3):
        ids.append(ledger.submit(1))
        ledger.wait(1)
    assert [b.id for b in reading.recent_batches(ledger.db, 2)] == [ids[2], ids[1]]


def test_a_summary_of_each_category(ledger: Ledger) -> None:
    """States, tokens, and the median and 95th percentile of the answered jobs' times."""
    batch_id, _, held = ledger.running(21)
    ledger.record(*[outcome(h, duration_ms=float(n), **ANSWERED) for n, h in enumerate(held[:20])])
    ledger.record(outcome(held[20], JobState.FAILED, duration_ms=1e9))
    (summary,) = reading.by_category(ledger.db, batch_id)
    assert (summary.category, summary.states) == ("summarize", {"done": 20, "failed": 1})
    assert (summary.tokens_in, summary.tokens_out) == (40, 60)
    assert (summary.median_ms, summary.p95_ms) == (10.0, 19.0)


def test_a_summary_before_anything_is_done(ledger: Ledger) -> None:
    """There is no median of nothing."""
    (summary,) = reading.by_category(ledger.db, ledger.submit(2))
    assert (summary.states, summary.median_ms, summary.p95_ms) == ({"queued": 2}, None, None)


def test_what_waits_and_why(ledger: Ledger) -> None:
    """Live jobs by class and state, and the reason of a job that will run again."""
    batch_id, _, held = ledger.running(3)
    ledger.record(outcome(held[0]), outcome(held[1], JobState.QUEUED, error_code="busy", error_message="server busy"))
    assert reading.waiting_by_class(ledger.db, batch_id) == {"small": {"running": 1, "queued": 1}}
    assert reading.last_error(ledger.db, batch_id, "small") == "server busy"
    assert reading.last_error(ledger.db, batch_id, "coder") is None


def test_one_job_is_read_with_its_output(ledger: Ledger) -> None:
    """What `run` waits for: the first job, answered or not."""
    batch_id, _, (job,) = ledger.running(1)
    assert reading.one_job(ledger.db, batch_id).output is None
    ledger.record(outcome(job, output=b'"hi"'))
    assert reading.one_job(ledger.db, batch_id).output == b'"hi"'


def test_ticks_tell_how_long_ago(ledger: Ledger) -> None:
    """A service that never ran has no age; each run replaces the last."""
    assert ticks.last_tick(ledger.db, "sweep") is None
    for n in (1, 2):
        ticks.tick(ledger.db, "sweep", {"leases": n})
        ledger.wait(7)
    assert ticks.last_tick(ledger.db, "sweep") == 7


def test_workers_are_listed_by_name(ledger: Ledger) -> None:
    """As `doctor` shows them."""
    for name in ("b/gpu", "a/gpu"):
        ledger.worker(name)
    assert [w.name for w in reading.all_workers(ledger.db)] == ["a/gpu", "b/gpu"]
