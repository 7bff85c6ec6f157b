"""The states of a job and of a batch.

    submit ──► queued ──► dispatched ──► running ──► done
       │         ▲            │             │   ├──► escalated
       │         │            │ lost        │   ├──► failed
       └► refused│────────────┘             │   └──► refused
                 ├──────────────────────────┘
                 │   lease expired · retry later · drain · on to the cloud class
                 └──► cancelled / expired   (from any state that is not terminal)

Terminal states never change.  Every change is one SQL statement that names the state it leaves.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where a job is; the diagram is above."""

    QUEUED = "queued"  #: waits in the ledger
    DISPATCHED = "dispatched"  #: its slice was sent to Redis
    RUNNING = "running"  #: a worker holds its lease
    DONE = "done"
    ESCALATED = "escalated"  #: done, by the cloud class
    FAILED = "failed"  #: a permanent error, or its attempts are used up
    REFUSED = "refused"  #: policy and privacy leave nowhere to run it
    CANCELLED = "cancelled"
    EXPIRED = "expired"  #: its deadline passed first


#: states in which a job still has work before it
LIVE = frozenset({JobState.QUEUED, JobState.DISPATCHED, JobState.RUNNING})
#: states that never change
TERMINAL = frozenset(JobState) - LIVE
#: terminal states that carry an answer
ANSWERED = frozenset({JobState.DONE, JobState.ESCALATED})

#: terminal states that telemetry counts: the pool's own doing
COUNTED = ANSWERED | {JobState.FAILED, JobState.REFUSED}

#: every move there is: state left -> states reached
MOVES: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.DISPATCHED, JobState.CANCELLED, JobState.EXPIRED}),
    JobState.DISPATCHED: frozenset({JobState.QUEUED, JobState.RUNNING, JobState.CANCELLED, JobState.EXPIRED}),
    JobState.RUNNING: frozenset({JobState.QUEUED}) | TERMINAL,
}


class BatchState(StrEnum):
    """Where a batch is: loading ──► open ──► finished or cancelled."""

    LOADING = "loading"  #: its jobs are being inserted; dispatch does not see it
    OPEN = "open"  #: acknowledged; has jobs that are not terminal
    FINISHED = "finished"  #: every job is terminal
    CANCELLED = "cancelled"  #: every job is terminal, some because the batch was cancelled
