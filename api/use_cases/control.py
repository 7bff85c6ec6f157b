"""Batches under control: pause, resume, retry; what is resumed may be a node."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from api.use_cases.pool import Pool
from api.use_cases.submitting import Beside, When, seconds_to
from tasks.errors import NotFound, UsageError
from tasks.ledger import control, reading
from tasks.ledger.submit import DEFAULT_DEADLINE_S
from tasks.states import JobState


@dataclass(frozen=True)
class Paused:
    """A batch that is not sent. running: jobs that go on to their end; queued: those that wait."""

    running: int
    queued: int


def pause(pool: Pool, batch_id: str) -> Paused:
    """Send nothing more of a batch; raises NotFound, UsageError when it is over."""
    control.pause(pool.db, batch_id)
    states = reading.waiting_by_class(pool.db, batch_id).values()
    running = sum(found.get(JobState.RUNNING, 0) for found in states)
    return Paused(running, sum(sum(found.values()) for found in states) - running)


def resume(pool: Pool, what: str) -> bool:
    """Go on with a batch, or with a node; whether it was a batch. Raises NotFound, UsageError."""
    from api.use_cases import nodes

    is_batch, is_node = _is_batch(pool, what), what in nodes.nodes_named(pool)
    if is_batch and is_node:
        raise UsageError(f"{what} is a batch and a node; for the node say: offload nodes start {what}")
    if is_batch:
        control.resume(pool.db, what)
    elif is_node:
        nodes.resume(pool, what)
    else:
        raise NotFound(f"there is no batch and no node {what[:80]!r}; look with: offload batches; offload nodes")
    return is_batch


def _is_batch(pool: Pool, name: str) -> bool:
    try:
        reading.batch(pool.db, name)
    except NotFound:
        return False
    return True


def retry(
    pool: Pool,
    batch_id: str,
    states: Collection[JobState],
    priority: int | None,
    deadline: When | None,
    beside: Beside = lambda c, batch_id: None,
) -> str:
    """Submit the lines of a batch that ended in one of these states again; the new batch's id."""
    return control.retry(
        pool.db,
        batch_id,
        states or control.RETRIED,
        priority=priority,
        deadline_s=DEFAULT_DEADLINE_S if deadline is None else seconds_to(deadline),
        categories=pool.registry.categories,
        beside=beside,
    )
