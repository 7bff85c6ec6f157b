"""One table: what runs, when, how long a tick is worth running, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasks.queues import RUN_AUDIT, SCHEDULER_QUEUE, SWEEP
from tasks.settings import Times


@dataclass(frozen=True)
class Periodic:
    """A service on beat. every, expires: seconds; a tick that waited longer than `expires` is dropped."""

    task: str
    every: float
    expires: float
    why: str


def table(times: Times) -> tuple[Periodic, ...]:
    """Everything that beat sends."""
    return (
        Periodic(SWEEP, times.sweep, times.sweep, "leases, lost slices and deadlines; it ends by filling the windows"),
        Periodic(RUN_AUDIT, times.audit, times.audit, "second opinions on finished jobs: chosen, asked for, taken in"),
    )


def schedule(times: Times) -> dict[str, dict[str, Any]]:
    """The table in Celery's form."""
    return {
        p.task: {
            "task": p.task,
            "schedule": p.every,
            "options": {"queue": SCHEDULER_QUEUE, "expires": p.expires, "ignore_result": True},
        }
        for p in table(times)
    }
