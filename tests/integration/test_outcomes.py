"""What becomes of jobs, end to end through a real worker process: each kind of answer, of error and of server."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tasks.categories import DEFAULT_CATEGORIES
from tasks.ledger import reading
from tasks.queues import class_queue
from tasks.registry import CLOUD
from tasks.tables import CallRow
from tests.support.pool import TestPool, running, simulated
from tests.support.servers import Server
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "ops" / "examples" / "jobs.jsonl"
LONG = "word " * 10_000

calls = CallRow.__table__  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A model server that holds one model at a time."""
    made = Server(slots=64, loaded_limit=1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[TestPool]:
    """A whole pool; class `hasty` has no patience with its server, and `steady` none with its pauses."""
    config = simulated(server.url, in_flight=32)
    small = {"serve": [{"provider": "sim", "model": "gemma3:4b"}], "options": {"num_ctx": 8192}, "think": False}
    config["classes"]["hasty"] = small | {"timeouts": {"first_token": 1, "total": 2}}
    config["classes"]["steady"] = small | {"timeouts": {"between_tokens": 0.4}}
    config["categories"] = {
        "hasty": {"class": "hasty"},
        "steady": {"class": "steady"},
        "once": {"class": "small", "attempts": 1},
    }
    with running(tmp_path_factory.mktemp("outcomes"), config) as made:
        made.up()
        yield made


def job(name: str, prompt: str = "", category: str = "summarize", **more: Any) -> dict[str, Any]:
    return {"id": name, "category": category, "prompt": prompt or f"A note. [[sim:{name}]]", **more}


#: name of a fault -> the code a job that meets it every time ends with; all take every attempt there is
SPENT = {
    "500": "http_500",
    "reset": "reset",
    "half": "incomplete",
    "notjson": "not_json",
    "midstream-error": "midstream_error",
    "truncated": "truncated",
    "empty": "empty_output",
    "leak-open": "truncated_thinking",
}
#: leaks that are mended
LEAKS = ("leak=think", "leak=lone-close", "leak=kimi", "leak=gpt-oss", "leak=gemma", "leak=granite", "leak=mistral")


@pytest.fixture(scope="module")
def outcomes(pool: TestPool) -> dict[str, dict[str, Any]]:
    """One batch in which every fault is met, by id; its call rows are under `calls`."""
    jobs = [
        *(job(name) for name in (*SPENT, *LEAKS)),
        job("once-500", "A note. [[sim:500*1]]"),
        job("twice-reset", "A note. [[sim:reset*2]]"),
        job("other-kinds", "A note. [[sim:500*1]][[sim:half*1]]"),
        job("busy", "A note. [[sim:429=0.2*3]]"),
        job("loading", "A note. [[sim:503=0.2*3]]"),
        job("400"),
        job("stall", category="steady"),
        job("hang", category="hasty"),
        job("bad-json", "A note. [[sim:badjson]]", "extract", json=True),
        job("bad-json-once", "A note. [[sim:badjson*1]]", "extract", json=True),
        job("wrong-label", "Answer with one of: red, green [[sim:wronglabel]]", "classify"),
        job("one-attempt", "A note. [[sim:500]]", "once"),
        job("nul"),
        job("long", system=LONG),
        job("vectors-nan", category="embed"),
        job("vectors-zero", category="embed"),
        job("vector", "A text.", "embed"),
        {"id": "vectors", "category": "embed", "input": ["A text.", "Another."]},
        *(job(f"fine-{i}", f"Note {i}.") for i in range(20)),
    ]
    batch = pool.submit(jobs)
    found = {r["id"]: r for r in pool.finished(batch, within_s=120)}
    assert set(found) == {j["id"] for j in jobs}
    for name, rows in _calls(pool, batch).items():
        found[name]["calls"] = rows
    return found


def _calls(pool: TestPool, batch: str) -> dict[str, list[str | None]]:
    """Line id -> the error codes of its calls, in their order."""
    found: dict[str, list[str | None]] = {r["id"]: [] for r in pool.results(batch)}
    with pool.db.read() as c:
        ids: dict[int, str] = dict(c.exec_driver_sql("SELECT id, line_id FROM jobs WHERE batch_id = ?", (batch,)).all())
        for row in c.execute(select(calls).where(calls.c.batch_id == batch, calls.c.sent).order_by(calls.c.id)):
            found[ids[row.job_id]].append(row.error_code)
    return found


@pytest.mark.parametrize("name", SPENT)
def test_a_fault_that_lasts_uses_up_the_attempts(name: str, outcomes: dict[str, Any]) -> None:
    """Transient errors and bad answers are tried three times, each with its call row, then fail."""
    result = outcomes[name]
    assert (result["state"], result["attempts"], len(result["calls"])) == ("failed", 3, 3), result
    assert {*result["calls"], result["error"]["code"]} == {SPENT[name]}
    assert result["output"] is None
    assert "note" not in result["error"]["message"]


@pytest.mark.parametrize(("name", "attempts"), [("once-500", 2), ("twice-reset", 3), ("other-kinds", 3)])
def test_a_fault_that_passes_is_tried_again(name: str, attempts: int, outcomes: dict[str, Any]) -> None:
    """A transient error costs an attempt and no more: the job is done, and the attempts say how often it was tried."""
    result = outcomes[name]
    assert (result["state"], result["attempts"]) == ("done", attempts), result
    assert len(result["calls"]) == attempts
    assert result["calls"][-1] is None
    assert all(result["calls"][:-1])
    assert "error" not in result


@pytest.mark.parametrize("name", ["busy", "loading"])
def test_a_busy_server_burns_no_attempt(name: str, outcomes: dict[str, Any]) -> None:
    """429 and 503 three times, then an answer: one attempt, four calls."""
    result = outcomes[name]
    assert (result["state"], result["attempts"]) == ("done", 1), result
    assert len(result["calls"]) == 4


def test_a_permanent_error_fails_that_job_alone(outcomes: dict[str, Any]) -> None:
    """400 fails at the first call; its neighbours are done."""
    assert (outcomes["400"]["state"], len(outcomes["400"]["calls"])) == ("failed", 1)
    assert {outcomes[f"fine-{i}"]["state"] for i in range(20)} == {"done"}
    assert {outcomes[f"fine-{i}"]["attempts"] for i in range(20)} == {1}


@pytest.mark.parametrize(
    ("name", "codes"), [("stall", {"stalled"}), ("hang", {"first_token_timeout", "total_timeout"})]
)
def test_a_call_that_hangs_ends_at_its_deadline(name: str, codes: set[str], outcomes: dict[str, Any]) -> None:
    """Silence before or within the answer ends at the class's timeouts, and costs attempts like any error."""
    result = outcomes[name]
    assert (result["state"], result["attempts"]) == ("failed", 3), result
    assert {*result["calls"], result["error"]["code"]} <= codes, "before its load is known, a call has longer"


def test_answers_that_fail_their_check_are_tried_again(outcomes: dict[str, Any]) -> None:
    """Bad JSON, a label not offered and unusable vectors fail after their attempts; one bad answer is forgiven."""
    assert outcomes["bad-json"]["error"]["code"] == "bad_json"
    assert (outcomes["bad-json-once"]["state"], outcomes["bad-json-once"]["attempts"]) == ("done", 2)
    for name in ("wrong-label", "vectors-nan", "vectors-zero"):
        assert (outcomes[name]["state"], outcomes[name]["attempts"]) == ("failed", 3), outcomes[name]


def test_a_category_has_its_own_number_of_attempts(outcomes: dict[str, Any]) -> None:
    """`attempts: 1` of a category is one call."""
    assert (outcomes["one-attempt"]["state"], outcomes["one-attempt"]["attempts"]) == ("failed", 1)


@pytest.mark.parametrize("name", LEAKS)
def test_leaked_thoughts_are_normalised_away(name: str, outcomes: dict[str, Any]) -> None:
    """Thoughts in the answer, however a family writes them, are not in the output."""
    result = outcomes[name]
    assert (result["state"], result["attempts"]) == ("done", 1), result
    assert "houghts about" not in result["output"]


def test_a_nul_in_an_answer_harms_nothing(outcomes: dict[str, Any]) -> None:
    """What no ledger holds is escaped in the output."""
    assert outcomes["nul"]["state"] == "done"
    assert "\0" not in outcomes["nul"]["output"]


def test_a_prompt_too_long_for_every_model_fails_before_a_call(outcomes: dict[str, Any]) -> None:
    """It fails with its size and the limit, and no call."""
    result = outcomes["long"]
    assert (result["state"], result["error"]["code"], result["calls"]) == ("failed", "prompt_too_long", [])
    assert "8192" in result["error"]["message"]


def test_embeddings_are_lists_of_floats(outcomes: dict[str, Any]) -> None:
    """One text gives one vector, a list of texts a list of vectors, the same text the same vector."""
    one, two = outcomes["vector"]["output"], outcomes["vectors"]["output"]
    assert len(one) == 1024
    assert all(isinstance(x, float) for x in one)
    assert len(two) == 2
    assert two[0] == one
    assert two[1] != one


def _seen(server: Server, prompt: str) -> bool:
    """Whether a request with this prompt reached the server."""
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:16]
    return digest in {call["prompt"] for call in server.simulator.calls(10_000)}


def test_what_is_too_long_reaches_no_server(pool: TestPool, server: Server) -> None:
    """The simulator's own log has the short prompt and not the long one."""
    prompts = "A short one that nobody else sends.", "A long one that nobody else sends."
    pool.finished(pool.submit([job("short", prompts[0]), job("long", prompts[1], system=LONG)]))
    assert [_seen(server, p) for p in prompts] == [True, False]


def test_every_example_is_done_and_each_model_is_loaded_once(pool: TestPool, server: Server) -> None:
    """All of ops/examples/jobs.jsonl is done; classes take turns, so one model at a time in memory needs no reload."""
    server.simulator.reset()
    ran = pool.cli("submit", str(EXAMPLES), "--wait")
    assert ran.code == 0, ran.stderr
    assert {r["category"] for r in ran.lines} == {c.name for c in DEFAULT_CATEGORIES.values() if c.model_class != CLOUD}
    by_id = {r["id"]: r for r in ran.lines}
    for number, text in enumerate(EXAMPLES.read_text().splitlines(), start=1):
        asked = json.loads(text)
        output = by_id[asked.get("id", asked.get("custom_id", str(number)))]["output"]
        if asked.get("json") or asked.get("schema"):
            assert isinstance(output, (dict, list)), asked
    stats = server.simulator.stats()
    assert stats["loads"] == dict.fromkeys(stats["requests_by_model"], 1)
    assert len(stats["loads"]) == 4


def test_a_refused_key_ends_the_job_after_its_attempts(pool: TestPool) -> None:
    """401 is the provider's trouble: the job ends after its attempts, the others go on when a probe is fine again."""
    batch = pool.submit([job("401"), *(job(f"fine-{i}", f"Note {i}.") for i in range(10))])
    results = {r["id"]: r for r in pool.finished(batch)}
    assert (results["401"]["state"], results["401"]["attempts"]) == ("failed", 3), results["401"]
    assert {r["state"] for name, r in results.items() if name != "401"} == {"done"}


def test_a_provider_that_goes_away_costs_no_attempt(pool: TestPool, server: Server) -> None:
    """Down: the worker stops consuming, the jobs wait, status says why. Back: it goes on by itself."""
    server.stop()
    try:
        batch = pool.submit([job(f"j{i}", f"Note {i}.") for i in range(40)])

        def why() -> str:
            return str(pool.cli("status", batch, "--json").json["waiting"].get("small", ""))

        eventually(lambda: "here/sim is offline" in why(), "status names the provider")
        eventually(lambda: not _consuming(pool) and pool.redis.client.llen(class_queue("small")), "nobody consumes")
        assert pool.batch(batch).open == 40
    finally:
        server.start()
    results = pool.finished(batch)
    assert Counter((r["state"], r["attempts"]) for r in results) == Counter({("done", 1): 40})


def _consuming(pool: TestPool) -> bool:
    """What the worker says of itself."""
    return bool(reading.all_workers(pool.db)[0].consuming)
