"""A reply or an error becomes an outcome, and no outcome ever quotes what was asked or answered."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import BadOutput, Busy, CallError, Misconfigured, Offline, OutOfReach, Permanent, Transient
from tasks.ledger.record import Outcome
from tasks.privacy import Reach
from tasks.providers import Provider
from tasks.states import JobState
from tasks.tables import CallRow
from tests.unit.workers.jobs import ME, asked, claimed
from workers.backends import Reply
from workers.judging import RETRY_FIRST_S, backoff, failed, given_back, succeeded

REPLY: dict[str, Any] = {
    "model": "tiny:q4",
    "tokens_in": 11,
    "tokens_out": 7,
    "tokens_thinking": 2,
    "load_ms": 1.0,
    "first_token_ms": 2.0,
    "duration_ms": 3.0,
}


def reply(text: str = "Some answer.", **more: Any) -> Reply:
    return Reply(text=text, **(REPLY | more))


def judge(answer: Reply, category: str = "plain", attempts: int = 0, **body: Any) -> Outcome:
    job = claimed(category, attempts=attempts, **body)
    return succeeded(job, asked(job), answer, ME, 1000.0)


def fail(error: CallError, category: str = "plain", attempts: int = 0, *, sent: bool = True) -> Outcome:
    job = claimed(category, attempts=attempts)
    return failed(job, error, ME, asked(job) if sent else None, 1000.0, 5.0 if sent else 0.0)


def value(outcome: Outcome) -> Any:
    assert outcome.state is JobState.DONE, outcome
    assert outcome.output is not None
    return json.loads(outcome.output)


def test_an_answer_is_done() -> None:
    """The outcome has the job's own fence, one attempt, the answer as JSON and what served it."""
    outcome = judge(reply())
    assert value(outcome) == "Some answer."
    assert (outcome.job_id, outcome.fence, outcome.batch_id, outcome.attempts) == (1, 4, "b", 1)
    assert (outcome.served_model, outcome.provider, outcome.node) == ("tiny:q4", "gpu", "node")
    assert (outcome.tokens_in, outcome.tokens_out, outcome.duration_ms) == (11, 7, 3.0)
    assert (outcome.error_code, outcome.error_message, outcome.delay) == (None, None, 0.0)


def test_a_call_row_has_all_its_columns() -> None:
    """Every way a call ends gives the same columns, so that a group is one insert."""
    job = claimed()
    rows = [
        judge(reply()).call,
        judge(reply("")).call,
        fail(Transient("reset", "x")).call,
        given_back(job, ME, asked(job), 1000.0, 1.0).call,
    ]
    columns = set(CallRow.model_fields) - {"id", "stale", "hour", "ended"}  # those are the commit's
    for row in rows:
        assert row is not None
        assert set(row) == columns
    assert rows[0] is not None
    assert {name: rows[0][name] for name in ("model_asked", "model_served", "started_at", "error_code")} == {
        "model_asked": "tiny",
        "model_served": "tiny:q4",
        "started_at": 1000.0,
        "error_code": None,
    }


@pytest.mark.parametrize(
    ("text", "wanted"), [('{"a": 1}', {"a": 1}), ("```json\n[1, 2]\n```", [1, 2]), (' "x" ', "x"), ("null", None)]
)
def test_a_json_answer_is_its_value(text: str, wanted: Any) -> None:
    """JSON is stored as what it says, not as text."""
    assert value(judge(reply(text), json=True)) == wanted


def test_a_schema_is_held() -> None:
    """An answer of the right shape is done, another burns an attempt."""
    schema = {"type": "object", "required": ["a"]}
    assert value(judge(reply('{"a": 1}'), schema=schema)) == {"a": 1}
    outcome = judge(reply('{"b": 1}'), schema=schema)
    assert (outcome.state, outcome.error_code, outcome.attempts) == (JobState.QUEUED, "schema_mismatch", 1)


@pytest.mark.parametrize(("given_", "wanted"), [("a", [1.0, 2.0, 3.0]), (["a"], [[1.0, 2.0, 3.0]])])
def test_an_embedding_has_the_shape_of_its_question(given_: Any, wanted: Any) -> None:
    """One text, one vector; a list of texts, a list of vectors."""
    assert value(judge(reply("", vectors=[[1.0, 2.0, 3.0]]), "vector", input=given_)) == wanted


@pytest.mark.parametrize("vectors", [[], [[1.0, 2.0]], [[0.0, 0.0, 0.0]], [[1.0, 2.0, 3.0]] * 2])
def test_wrong_vectors_are_refused(vectors: list[list[float]]) -> None:
    """Too few, too many, of another size, or zero."""
    assert judge(reply("", vectors=vectors), "vector", input="a").error_code == "wrong_vectors"


def test_thoughts_are_taken_out_and_counted() -> None:
    """Thinking that leaked into the answer is not part of it, and the call row says so."""
    clean, leaked = judge(reply()), judge(reply("<think>hm</think>Some answer."))
    assert value(leaked) == value(clean) == "Some answer."
    assert leaked.call is not None
    assert clean.call is not None
    assert (leaked.call["leaked"], clean.call["leaked"]) == (True, False)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (reply(""), "empty_output"),
        (reply(" \n"), "empty_output"),
        (reply("", reasoning="only thoughts"), "empty_output"),
        (reply("<think>only thoughts</think>"), "empty_output"),
        (reply("cut", finish_reason="length"), "truncated"),
        (reply("", finish_reason="length"), "truncated"),
    ],
)
def test_what_is_no_answer_burns_an_attempt(answer: Reply, code: str) -> None:
    """The job runs again, and its call row keeps tokens, model and reason."""
    outcome = judge(answer)
    assert (outcome.state, outcome.error_code, outcome.attempts, outcome.output) == (JobState.QUEUED, code, 1, None)
    assert outcome.delay > 0
    assert (outcome.served_model, outcome.tokens_out) == ("tiny:q4", 7)
    assert outcome.call is not None
    assert (outcome.call["error_code"], outcome.call["tokens_out"], outcome.call["model_served"]) == (
        code,
        7,
        "tiny:q4",
    )


def test_the_last_attempt_fails() -> None:
    """A bad answer is asked for again until the category's attempts are used up."""
    states = [judge(reply(""), attempts=n).state for n in range(3)]
    assert states == [JobState.QUEUED, JobState.QUEUED, JobState.FAILED]
    assert judge(reply(""), "stubborn").state is JobState.FAILED


KINDS: dict[str, tuple[CallError, list[JobState], int]] = {
    "busy": (Busy("busy", "m"), [JobState.QUEUED] * 3, 0),
    "busy for long": (Busy("busy", "m", retry_after=20.0), [JobState.QUEUED] * 3, 0),
    "offline": (Offline("refused", "m"), [JobState.QUEUED] * 3, 0),
    "transient": (Transient("reset", "m"), [JobState.QUEUED, JobState.QUEUED, JobState.FAILED], 1),
    "bad output": (BadOutput("bad_json", "m"), [JobState.QUEUED, JobState.QUEUED, JobState.FAILED], 1),
    "misconfigured": (Misconfigured("model_not_found", "m"), [JobState.QUEUED, JobState.QUEUED, JobState.FAILED], 1),
    "permanent": (Permanent("context_exceeded", "m"), [JobState.FAILED] * 3, 1),
    "internal": (CallError("internal", "m"), [JobState.FAILED] * 3, 1),
}


@pytest.mark.parametrize(("error", "states", "burned"), KINDS.values(), ids=KINDS)
def test_each_error_has_its_outcome(error: CallError, states: list[JobState], burned: int) -> None:
    """A busy or absent server burns nothing however often; what may pass is tried again; what cannot fails now."""
    for attempts, state in enumerate(states):
        outcome = fail(error, attempts=attempts)
        assert (outcome.state, outcome.attempts) == (state, burned)
        assert (outcome.error_code, outcome.error_message) == (error.code, "m")
        assert (outcome.delay > 0) == (state is JobState.QUEUED)
        assert outcome.call is not None
        assert (outcome.call["error_code"], outcome.call["duration_ms"]) == (error.code, 5.0)


def test_a_busy_server_names_its_time() -> None:
    """The job is not due before."""
    assert fail(Busy("busy", "m", retry_after=20.0)).delay == 20.0


def test_what_was_never_sent_has_no_call() -> None:
    """An error before the request burns no attempt and leaves no call row, and fails the job."""
    outcome = fail(Permanent("prompt_too_long", "m"), sent=False)
    assert (outcome.state, outcome.attempts, outcome.call, outcome.duration_ms) == (JobState.FAILED, 0, None, None)


@pytest.mark.parametrize("sent", [True, False])
def test_a_job_given_back_bears_no_blame(sent: bool) -> None:
    """Drained or fenced: queued again at once; a call that was closed is in the telemetry."""
    job = claimed(attempts=1)
    outcome = given_back(job, ME, asked(job) if sent else None, 1000.0, 5.0)
    assert (outcome.state, outcome.attempts, outcome.delay, outcome.error_code) == (JobState.QUEUED, 0, 0.0, None)
    assert (outcome.call or {}).get("error_code") == ("closed" if sent else None)


def test_waits_double_and_spread() -> None:
    """Retries of one moment do not come back together."""
    for attempts in range(5):
        waits = {backoff(attempts) for _ in range(50)}
        middle = RETRY_FIRST_S * 2**attempts
        assert len(waits) > 1
        assert min(waits) >= 0.75 * middle
        assert max(waits) <= 1.25 * middle


CANARY = "c4n4ry"
DIRTY = st.builds(lambda a, b: a + CANARY + b, st.text(max_size=8), st.text(max_size=8)) | st.sampled_from(
    [
        f'{{"{CANARY}": 1}}',
        f'["{CANARY}"',
        f"```\n{CANARY}",
        f"<think>{CANARY}</think>",
        f"<think>{CANARY}",
        CANARY * 50,
    ]
)
WAYS: list[dict[str, Any]] = [
    {},
    {"json": True},
    {"schema": {"type": "object", "properties": {"a": {"enum": [CANARY]}}, "additionalProperties": False}},
    {"category": "classify"},
    {"category": "commit-msg"},
    {"category": "naming"},
    {"category": "code"},
    {"category": "vector", "input": CANARY},
]


@given(DIRTY, st.sampled_from(WAYS), st.sampled_from(["stop", "length"]))
def test_no_outcome_quotes_what_was_asked_or_answered(text: str, way: dict[str, Any], finish: str) -> None:
    """Whatever is wrong with an answer, the error and the call row hold neither it nor the prompt."""
    way = dict(way)
    category = way.pop("category", "plain")
    body = {"prompt": f"{CANARY} one of: a, b"} | way if "input" not in way else way
    job = claimed(category, model_class="embed" if category == "vector" else "small", **body)
    outcome = succeeded(job, asked(job), reply(text, reasoning=text, finish_reason=finish), ME, 1000.0)
    assert CANARY not in str(outcome.error_message)
    assert CANARY not in str(outcome.call)
    if outcome.output is not None:
        json.loads(outcome.output)


def cloud(category: str = "plain", **more: Any) -> Any:
    """A job as a cloud's worker asks it, or with fields of its own."""
    return dataclasses.replace(asked(claimed(category)), **more)


def test_an_answer_by_a_cloud_is_escalated() -> None:
    """Whatever a provider of reach cloud answers ends so, whoever sent the job there."""
    outcome = succeeded(claimed(), cloud(reach=Reach.CLOUD), reply(), ME, 1000.0)
    assert outcome.state is JobState.ESCALATED


def test_failed_checks_go_on_only_after_the_attempts_and_only_where_they_may() -> None:
    """The last rejected answer of a job that may goes on with no attempt lost; other errors and other jobs fail."""
    last = claimed("stubborn")
    bad = BadOutput("check_failed", "label: several lines")
    goes = failed(last, bad, ME, cloud("stubborn", goes_on=True), 1000.0, 5.0)
    assert (goes.state, goes.escalation) == (JobState.QUEUED, "its answers failed their checks (check_failed)")
    assert failed(last, bad, ME, cloud("stubborn", goes_on=False), 1000.0, 5.0).state is JobState.FAILED
    other = failed(last, Transient("http_500", "x"), ME, cloud("stubborn", goes_on=True), 1000.0, 5.0)
    assert (other.state, other.escalation) == (JobState.FAILED, None)
    again = failed(claimed(), bad, ME, cloud(goes_on=True), 1000.0, 5.0)
    assert (again.state, again.escalation) == (JobState.QUEUED, None)


def test_what_privacy_held_back_burns_nothing_and_was_no_call() -> None:
    """At home it waits under its tightened tier; a cloud's worker refuses it for good."""
    error = OutOfReach("local_only", "nothing was sent")
    waits = failed(claimed(), error, ME, cloud(reach=Reach.LAN), 1000.0, 5.0)
    assert (waits.state, waits.tier, waits.attempts, waits.call) == (JobState.QUEUED, "local_only", 0, None)
    refused = failed(claimed(), error, ME, cloud(reach=Reach.CLOUD), 1000.0, 5.0)
    assert (refused.state, refused.attempts, refused.call) == (JobState.REFUSED, 0, None)


@pytest.mark.parametrize(("had", "usd"), [("nothing", 0.0), ("request", 0.0), ("answer", 0.25)])
def test_what_a_call_that_can_never_succeed_cost(had: Literal["nothing", "request", "answer"], usd: float) -> None:
    """Only an answer has its request's price, of no use as it was."""
    job = claimed()
    prices = {"tiny": {"usd": {"request": 0.25}}}
    provider = Provider.model_validate({"name": "c", "kind": "anthropic", "prices": prices})
    priced = dataclasses.replace(asked(job), provider=provider)
    outcome = failed(job, Permanent("output_too_large", "x", had), ME, priced, 1000.0, 5.0)
    assert outcome.call is not None
    assert outcome.call["cost_usd"] == usd
