"""On to the cloud: by the policy, after failures, from dead classes; within its limits, and never without a word."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tasks.ledger import reading
from tests.support.pool import TestPool, running, simulated
from tests.support.servers import Server
from tests.support.waiting import eventually
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

SHAPE = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture(scope="module")
def cloud() -> Iterator[BackgroundSimulator]:
    """A cloud that answers well."""
    with in_thread(SimulatorConfig(api_key="cloud-key", slots=64)) as made:
        yield made


@pytest.fixture(scope="module")
def local() -> Iterator[Server]:
    """A server at home that gives no good JSON."""
    made = Server(slots=64, loaded_limit=8, faults={"badjson": 1.0})
    yield made
    made.close()


def config(local: str, cloud: str, **claude: Any) -> dict[str, Any]:
    """A pool with a cloud, and a category that goes on there when it fails at home."""
    made = simulated(local)
    made["providers"].append({"name": "claude", "kind": "anthropic", "url": cloud, "in_flight": 8, **claude})
    made["classes"][CLOUD] = {"serve": [{"provider": "claude", "model": "claude-sim"}]}
    strict = {"class": "small", "attempts": 2, "on_failure": "escalate", "audit": 0}
    made["categories"] = {"strict": strict | {"json": True}, "stays": strict | {"json": True, "on_failure": "fail"}}
    return made


CLOUD = "cloud"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, local: Server, cloud: BackgroundSimulator) -> Iterator[TestPool]:
    """Beat, a worker at home and a cloud worker."""
    with running(tmp_path_factory.mktemp("escalation"), config(local.url, cloud.url)) as made:
        made.start("beat")
        made.start("worker", "--provider", "claude", "--node", "here", ANTHROPIC_API_KEY="cloud-key")
        made.worker()
        eventually(lambda: _well(made, "claude"), "the cloud worker takes work", 60)
        yield made


def _well(pool: TestPool, provider: str) -> bool:
    return any(w.provider == provider and w.health == "healthy" for w in reading.all_workers(pool.db))


def job(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "category": "summarize", "prompt": f"A note about {name}.", "privacy": "cloud_ok"} | fields


def test_disqualified_work_ends_escalated_with_every_reason(pool: TestPool) -> None:
    """The same row goes to the cloud's class and says who did it, where it was meant to go and all reasons why."""
    plain = {"id": "b", "category": "embed", "input": "A note."}
    batch = pool.submit([job("a", security=True, touches=["x.py", "auth.py"]), plain])
    escalated, done = pool.finished(batch)
    assert (escalated["state"], escalated["model"], escalated["provider"]) == ("escalated", "claude-sim", "claude")
    assert escalated["output"]
    reasons = ["many-files", "security-path", "security-flag"]
    assert [r["id"] for r in escalated["verdict"]["reasons"]] == reasons
    assert escalated["verdict"]["policy"].startswith("offload-to-llm v1 (")
    assert escalated["escalated"]["from"] == "small"
    assert "security path" in escalated["escalated"]["why"]
    assert (done["state"], done["provider"]) == ("done", "sim")
    row = pool.batch(batch)
    assert (row.done, row.escalated, row.refused) == (1, 1, 0)
    assert "escalated to the cloud: 1" in pool.cli("status", batch).text


def test_without_leave_it_is_refused_at_once(pool: TestPool, cloud: BackgroundSimulator) -> None:
    """Nothing said of the cloud is no leave: refused with the policy's reasons and privacy's, and exit 6 from run."""
    batch = pool.submit([job("a", privacy="lan_ok", security=True)])
    assert pool.batch(batch).state == "finished"
    refused = pool.results(batch)[0]
    assert (refused["state"], refused["output"]) == ("refused", None)
    assert [r["id"] for r in refused["verdict"]["reasons"]] == ["security-flag", "privacy"]
    ran = pool.cli("run", "summarize", "A note.", "--security")
    assert ran.code == 6
    assert "marked as security work" in ran.stderr
    ran = pool.cli("run", "summarize", "A note.", "--security", "--privacy", "cloud_ok", "--format", "json")
    assert (ran.code, ran.json["state"]) == (0, "escalated")


def test_consent_is_recorded_with_what_it_overruled(pool: TestPool) -> None:
    """--consent lets a person send what a detector would hold: with who, when, why, and which detector."""
    arguments = ("run", "summarize", "Write to jo.doe@acme-corp.com.", "--security", "--privacy", "cloud_ok")
    assert pool.cli(*arguments).code == 6
    ran = pool.cli(*arguments, "--consent", "she asked me to", "--format", "json")
    assert ran.json["state"] == "escalated"
    consent = ran.json["verdict"]["consent"]
    assert (consent["why"], consent["overruled"]) == ("she asked me to", ["email"])
    assert consent["who"]
    assert consent["at"].startswith("20")


def test_failed_checks_go_on_where_the_category_says_so(pool: TestPool) -> None:
    """After its attempts at home such a job ends escalated; without on_failure, or without leave, it fails."""
    shape: dict[str, Any] = {"schema": SHAPE}
    batch = pool.submit(
        [
            job("goes", category="strict", **shape),
            job("stays", category="stays", **shape),
            job("may-not", category="strict", privacy="lan_ok", **shape),
        ]
    )
    goes, stays, may_not = pool.finished(batch)
    assert (goes["state"], goes["escalated"]["from"]) == ("escalated", "small")
    assert "failed their checks (bad_json)" in goes["escalated"]["why"]
    assert isinstance(goes["output"]["n"], int)
    assert (stays["state"], may_not["state"]) == ("failed", "failed")
    assert stays["attempts"] == may_not["attempts"] == 2


def test_the_clouds_parameters_are_its_own(pool: TestPool, cloud: BackgroundSimulator) -> None:
    """A job's temperature is not sent to a protocol that rejects it, and over plain HTTP the cloud does reject it."""
    batch = pool.submit([job("warm", security=True, temperature=0.7)])
    assert pool.finished(batch)[0]["state"] == "escalated"
    body = {"model": "claude-sim", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    headers = {"x-api-key": "cloud-key"}
    for name, value in (("temperature", 1.0), ("top_p", 1.0), ("top_k", 40)):
        answer = httpx.post(f"{cloud.url}/v1/messages", json=body | {name: value}, headers=headers)
        assert answer.status_code == 400
        assert name in answer.json()["error"]["message"]


def test_a_clouds_key_is_checked_without_spending(pool: TestPool, cloud: BackgroundSimulator) -> None:
    """doctor says that a key is good, or is not, and the cloud has generated nothing for it."""
    before = cloud.stats()["requests"]
    pool.environment["ANTHROPIC_API_KEY"] = "cloud-key"
    eventually(lambda: "ok      provider claude: anthropic at" in pool.cli("doctor").text, "it is good")
    pool.environment["ANTHROPIC_API_KEY"] = "wrong"
    eventually(lambda: "BROKEN  provider claude: claude answered 401" in pool.cli("doctor").text, "it is not")
    del pool.environment["ANTHROPIC_API_KEY"]
    assert "by its worker's word" in pool.cli("doctor").text
    assert cloud.stats()["requests"] == before


def test_a_dead_class_goes_on_and_a_living_server_is_used_again(pool: TestPool, local: Server) -> None:
    """With nobody at home what may leave goes to the cloud; once the server is back, new work runs there again."""
    local.stop()
    asked = {"category": "strict", "schema": SHAPE}
    batch = pool.submit([job("goes", **asked), job("waits", category="stays", schema=SHAPE)])
    eventually(lambda: pool.batch(batch).escalated == 1, "it goes on", 60)
    assert [r["id"] for r in pool.results(batch)] == ["goes"]
    assert "nobody served class small" in pool.results(batch)[0]["escalated"]["why"]
    local.start()
    eventually(lambda: pool.batch(batch).open == 0, "the one that stays is tried at home", 30)
    assert pool.finished(pool.submit([{"category": "embed", "input": "A note."}]))[0]["provider"] == "sim"


def test_at_a_limit_jobs_wait_and_doctor_says_so(
    tmp_path_factory: pytest.TempPathFactory, local: Server, cloud: BackgroundSimulator
) -> None:
    """No call beyond the limit is sent, what was sent is accounted for, and the rest waits for the next window."""
    limits = [{"unit": "usd", "per": "day", "most": 0.05, "zone": "Europe/Berlin"}]
    prices = {"claude-sim": {"usd": {"request": 0.02}}}
    settings = config(local.url, cloud.url, limits=limits, prices=prices)
    with running(tmp_path_factory.mktemp("limits"), settings) as pool:
        pool.environment["ANTHROPIC_API_KEY"] = "cloud-key"
        pool.start("beat")
        pool.start("worker", "--provider", "claude", "--node", "here")
        batch = pool.submit([job(f"j{i}", security=True) for i in range(4)])
        eventually(lambda: pool.batch(batch).escalated == 2, "two fit", 60)
        eventually(lambda: "at its limit" in pool.cli("doctor").text, "doctor says so")
        text = pool.cli("doctor").text
        assert "0.05 usd a day" in text
        assert "Europe/Berlin" in text
        assert "raise providers.claude.limits" in text
        eventually(lambda: "at its limit" in json.dumps(pool.cli("status", batch, "--json").json), "so does status")
        assert (pool.batch(batch).escalated, pool.batch(batch).open) == (2, 2)
