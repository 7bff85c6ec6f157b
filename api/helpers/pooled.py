"""The helpers' calls as jobs of the running pool: --pool, --escalate. Importing this loads all of the pool."""

from __future__ import annotations

import time
from typing import Any

import orjson

from api.commands.run import JSON_ERRORS, RUN_PRIORITY, why_not
from api.commands.submit import dispatch_now
from api.helpers.answers import FAILED, Answer, deliver, print_output, say
from api.helpers.plan import shown
from api.helpers.raw import Asked
from api.interrupts import GoingOn
from api.use_cases.pool import Pool
from api.use_cases.submitting import submit_line
from api.use_cases.watching import is_running, live_workers
from tasks.errors import PoolError, UsageError
from tasks.ledger import reading
from tasks.privacy import Reach, Tier
from tasks.registry import CLOUD, nearest
from tasks.routing import Said
from tasks.states import ANSWERED, TERMINAL

#: seconds between two looks at the job
POLL_S = 0.02


def runs() -> bool:
    """Whether a pool runs here."""
    return is_running(Pool())


def must_run() -> int:
    """0 where a pool runs here; raises PoolError."""
    if not runs():
        raise PoolError("the pool is not running: offload up")
    return 0


def answer(name: str, asked: Asked) -> int:
    """Have the pool do it, and print the answer as `llm-offload` does; the exit code. Raises OffloadError."""
    must_run()
    job = _done(Pool(), name, asked, None)
    tokens, duration_ms = job.tokens_out or 0, job.duration_ms or 0.0
    if job.state in ANSWERED:
        return deliver(Answer(_text(job), job.served_model or "?", asked.category, tokens, duration_ms))
    if job.error_code in JSON_ERRORS:
        return deliver(Answer("", job.served_model or "?", asked.category, tokens, duration_ms, validated=False))
    say(why_not(job))
    return FAILED


def ask_cloud(name: str, asked: Asked) -> int:
    """Have the pool's cloud worker do it, and print its answer; FAILED where there is none or it may not."""
    pool = Pool()
    if not (pool.registry.has_cloud and is_running(pool) and _has_cloud_worker(pool)):
        return FAILED
    job = _done(pool, name, asked, Tier.CLOUD_OK)
    if job.state not in ANSWERED:
        say(why_not(job))
        return FAILED
    return print_output(_text(job))


def _has_cloud_worker(pool: Pool) -> bool:
    """Whether a worker lives that takes the cloud's work at the moment: somebody waits for the answer."""
    live = live_workers(pool, reading.all_workers(pool.db))
    return any(w.reach == Reach.CLOUD and CLOUD in w.classes and w.consuming for w in live)


def _done(pool: Pool, name: str, asked: Asked, tier: Tier | None) -> Any:
    """The job's row once it is terminal. tier: as it is said; None says nothing."""
    if asked.category not in pool.registry.categories:  # said here: the pool would repeat a prompt in its place
        near = nearest(asked.category, list(pool.registry.categories))
        raise UsageError(f"unknown category {shown(asked.category)}{near}")
    line: dict[str, Any] = {"category": asked.category, "prompt": asked.prompt}
    said = Said(touches=asked.touches, audience=asked.audience, security=asked.security, tier=tier)
    with GoingOn() as going:
        batch_id = submit_line(
            pool,
            orjson.dumps(line | ({"json": True} if asked.json else {})),
            name=f"{name} {asked.category}",
            priority=RUN_PRIORITY,
            said=said,
            on_opening=going.opening,
        )
        going.begun(batch_id)
        job = reading.one_job(pool.db, batch_id)
        if job.state not in TERMINAL:  # the policy may have refused it
            dispatch_now(pool)
        while job.state not in TERMINAL:
            time.sleep(POLL_S)
            job = reading.one_job(pool.db, batch_id)
    return job


def _text(job: Any) -> str:
    """Text as it is; JSON and vectors as JSON."""
    value = orjson.loads(job.output)
    return value if isinstance(value, str) else job.output.decode()
