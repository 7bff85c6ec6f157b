"""A reply or an error becomes an Outcome: done, failed, or queued again.  Pure; the one place that decides it."""

from __future__ import annotations

import random
from typing import Any

import orjson

from tasks.errors import BadOutput, Busy, CallError, Misconfigured, Offline, OutOfReach, Permanent, Transient
from tasks.leaks import Answer, normalise
from tasks.ledger.claims import Claimed, Identity
from tasks.ledger.record import Outcome
from tasks.pricing import cloud_usd, cost_usd
from tasks.privacy import Reach
from tasks.rollups import waited_ms
from tasks.routing import Decision
from tasks.states import JobState
from tasks.validation import check_json, check_text, check_vectors, clean, clean_json, compile_schema
from workers.asking import Asked
from workers.backends import Reply

#: errors of calls that were not sent, or turned away; not those of an answer that was too large
UNPAID = (Busy, Offline, OutOfReach, Misconfigured, Permanent)
#: seconds before a failed job's second attempt; doubles with each, give or take a quarter
RETRY_FIRST_S = 0.5


def accept(asked: Asked, reply: Reply) -> tuple[bytes, bool]:
    """The output as JSON and whether thoughts had leaked into it; raises BadOutput where it is not acceptable."""
    if asked.inputs is not None:
        check_vectors(reply.vectors, asked.inputs, asked.model_class.dimensions)
        vectors: Any = reply.vectors[0] if asked.one_vector else reply.vectors
        return orjson.dumps(vectors), False
    if reply.finish_reason == "length":
        raise BadOutput("truncated", f"the answer was cut off after {reply.tokens_out} tokens; raise max_tokens")
    answer = normalise(reply.text, reply.reasoning)
    return orjson.dumps(_value(asked, answer)), answer.leaked


def _value(asked: Asked, answer: Answer) -> Any:
    if not answer.text.strip():
        where = "; all of it was thinking" if answer.reasoning.strip() else ""
        raise BadOutput("empty_output", f"the answer is empty{where}")
    if asked.json:
        schema = compile_schema(asked.schema) if asked.schema is not None else None
        return clean_json(check_json(answer.text, schema))
    return clean(check_text(asked.category.check, answer.text, asked.prompt))


def answered_row(
    job: Claimed, me: Identity, asked: Asked, started_at: float, duration_ms: float, reply: Reply
) -> dict[str, Any]:
    """The columns of the row of a call that was answered, before the answer is looked at."""
    return call_row(job, me, asked, started_at, duration_ms) | {
        "model_served": reply.model,
        "load_ms": reply.load_ms,
        "first_token_ms": reply.first_token_ms,
        "tokens_in": reply.tokens_in,
        "tokens_out": reply.tokens_out,
        "tokens_thinking": reply.tokens_thinking,
        "finish_reason": reply.finish_reason,
        "cost_usd": cost_usd(asked.provider, asked.call.model, reply.tokens_in, reply.tokens_out),
    }


def avoided_usd(job: Claimed, asked: Asked, reply: Reply) -> float:
    """What the cloud would have taken for an answer that was good enough; 0 for what the cloud gave, and for audits."""
    if asked.reach is Reach.CLOUD or job.decision == Decision.AUDIT:
        return 0.0
    return cloud_usd(asked.registry, reply.tokens_in, reply.tokens_out)


def succeeded(job: Claimed, asked: Asked, reply: Reply, me: Identity, started_at: float) -> Outcome:
    """What a reply makes of its job."""
    call = answered_row(job, me, asked, started_at, reply.duration_ms, reply)
    try:
        output, call["leaked"] = accept(asked, reply)
        call["validated"] = True
    except BadOutput as error:
        call["validated"] = False
        outcome = failed(job, error, me, asked, started_at, reply.duration_ms)
        call["error_code"] = error.code
        outcome.call, outcome.served_model = call, reply.model
        outcome.tokens_in, outcome.tokens_out = reply.tokens_in, reply.tokens_out
        return outcome
    call["avoided_usd"] = avoided_usd(job, asked, reply)
    return Outcome(
        job.id,
        job.fence,
        job.batch_id,
        JobState.ESCALATED if asked.reach is Reach.CLOUD else JobState.DONE,
        output=output,
        attempts=1,
        call=call,
        served_model=reply.model,
        provider=me.provider,
        node=me.node,
        tokens_in=reply.tokens_in,
        tokens_out=reply.tokens_out,
        duration_ms=reply.duration_ms,
    )


def failed(
    job: Claimed, error: CallError, me: Identity, asked: Asked | None, started_at: float, duration_ms: float
) -> Outcome:
    """What an error makes of its job: queued again while it has attempts, failed otherwise."""
    attempts = 0 if asked is None or isinstance(error, Busy | Offline | OutOfReach) else 1
    most = asked.category.attempts if asked is not None else 0
    tier = escalation = None
    match error:
        case OutOfReach():
            tier, delay = error.tier, 0.0
            state = JobState.REFUSED if asked and asked.reach is Reach.CLOUD else JobState.QUEUED
        case Busy():
            state, delay = JobState.QUEUED, error.retry_after or RETRY_FIRST_S
        case Offline():
            state, delay = JobState.QUEUED, RETRY_FIRST_S
        case Transient() | BadOutput() | Misconfigured() if job.attempts + 1 < most:
            state, delay = JobState.QUEUED, backoff(job.attempts)
        case BadOutput() if asked is not None and asked.goes_on:
            state, delay, escalation = JobState.QUEUED, 0.0, f"its answers failed their checks ({error.code})"
        case _:
            state, delay = JobState.FAILED, 0.0
    return Outcome(
        job.id,
        job.fence,
        job.batch_id,
        state,
        error_code=error.code,
        error_message=str(error),
        attempts=attempts,
        delay=delay,
        call=None
        if asked is None or isinstance(error, OutOfReach)
        else broken_row(job, me, asked, started_at, duration_ms, error),
        provider=me.provider,
        node=me.node,
        duration_ms=duration_ms or None,
        escalation=escalation,
        tier=tier,
    )


def given_back(job: Claimed, me: Identity, asked: Asked | None, started_at: float, duration_ms: float) -> Outcome:
    """A job that ends here unfinished and without blame: drained, fenced or cancelled; its call, if any, was closed."""
    call = None
    if asked is not None:
        call = broken_row(job, me, asked, started_at, duration_ms, CallError("closed", ""))
    return Outcome(job.id, job.fence, job.batch_id, JobState.QUEUED, call=call)


def backoff(attempts: int) -> float:
    """Seconds until the next attempt."""
    return float(RETRY_FIRST_S * 2**attempts * random.uniform(0.75, 1.25))


def broken_row(
    job: Claimed, me: Identity, asked: Asked, started_at: float, duration_ms: float, error: CallError
) -> dict[str, Any]:
    """Of a call without an answer. What it cost nobody says: its request's price, where the server had it."""
    row = call_row(job, me, asked, started_at, duration_ms)
    unpaid = isinstance(error, UNPAID) and not (isinstance(error, Permanent) and error.had == "answer")
    cost = 0.0 if unpaid else cost_usd(asked.provider, asked.call.model, 0, 0)
    return row | {"error_code": error.code, "cost_usd": cost}


def call_row(job: Claimed, me: Identity, asked: Asked, started_at: float, duration_ms: float) -> dict[str, Any]:
    """The columns of a call row; every row has all of them, so that a group is one insert."""
    return {
        "job_id": job.id,
        "batch_id": job.batch_id,
        "fence": job.fence,
        "category": job.category,
        "model_class": job.model_class,
        "provider": me.provider,
        "node": me.node,
        "model_asked": asked.call.model,
        "started_at": started_at,
        "duration_ms": duration_ms,
        "model_served": None,
        "load_ms": 0.0,
        "first_token_ms": 0.0,
        "tokens_in": 0,
        "tokens_out": 0,
        "tokens_thinking": None,
        "finish_reason": None,
        "leaked": False,
        "error_code": None,
        "app": job.app,
        "decision": job.decision,
        "reason": job.reason,
        "considered": dict(asked.considered),
        "attempt": job.attempts + 1,
        "queue_ms": waited_ms(job.queued_at, started_at),
        "sent": True,
        "validated": None,
        "exit_code": None,
        "cost_usd": 0.0,
        "avoided_usd": 0.0,
    }
