"""One table: what runs, when, how long a tick is worth running, and why.

A tick that nobody ran before the next one is due is dropped, so a late task does not pile up; of two beats' ticks the
second finds everything done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery.schedules import crontab

from tasks.queues import RUN_AUDIT, RUN_FAN_OUTS, RUN_NOTIFY, RUN_PRUNE, RUN_ROLLUP, SCHEDULER_QUEUE, SWEEP
from tasks.settings import Times


@dataclass(frozen=True)
class Periodic:
    """A service on beat. every, expires: seconds; a tick that waited longer than `expires` is dropped.

    minute: of each hour at which it runs, UTC; None: whenever `every` has passed.
    """

    task: str
    every: float
    expires: float
    why: str
    minute: int | None = None


def table(times: Times) -> tuple[Periodic, ...]:
    """Everything that beat sends."""
    hour = times.rollup
    return (
        Periodic(SWEEP, times.sweep, times.sweep, "leases, lost slices and deadlines; it ends by filling the windows"),
        Periodic(RUN_AUDIT, times.audit, times.audit, "second opinions on finished jobs: chosen, asked for, taken in"),
        Periodic(RUN_FAN_OUTS, times.fan_out, times.fan_out, "fan-outs whose step is over: the next merge, or the end"),
        Periodic(
            RUN_NOTIFY, times.notify, times.notify, "tells people what happened, and what a look at the pool shows"
        ),
        Periodic(RUN_ROLLUP, hour, hour / 2, "sums the hour that has ended, and whatever hour has late calls", 5),
        Periodic(RUN_PRUNE, hour, hour / 2, "deletes calls that are older than their retention", 35),
    )


def schedule(times: Times) -> dict[str, dict[str, Any]]:
    """The table in Celery's form."""
    return {
        p.task: {
            "task": p.task,
            "schedule": p.every if p.minute is None else crontab(minute=p.minute),
            "options": {"queue": SCHEDULER_QUEUE, "expires": p.expires, "ignore_result": True},
        }
        for p in table(times)
    }
