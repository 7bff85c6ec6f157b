"""Every queue and task name.

Redis keys:
    offload.<class>    list: one queue per model class, each message {"slice": id}
    scheduler          list: what beat sends
    offload:swept      string: set by every sweep, which so learns whether Redis takes writes
    unacked            hash: messages a worker has received and not yet taken up (kombu's own)
    _kombu.binding.*   sets: kombu's routing tables
"""

from __future__ import annotations

#: the Celery task that claims a slice
RUN_SLICE = "workers.run_slice"
#: the queue of everything that beat sends
SCHEDULER_QUEUE = "scheduler"
SWEEP = "scheduler.sweep"
RUN_AUDIT = "scheduler.audit"
RUN_FAN_OUTS = "scheduler.fan_outs"
RUN_ROLLUP = "scheduler.rollup"
RUN_PRUNE = "scheduler.prune"
RUN_NOTIFY = "scheduler.notify"

QUEUE_PREFIX = "offload."
#: no queue: no class is called so
SWEPT_KEY = "offload:swept"
#: seconds after which nobody takes up what is in `unacked`: its worker is dead, and its slice was sent again
UNACKED_S = 900


def class_queue(model_class: str) -> str:
    """The queue of a model class."""
    return QUEUE_PREFIX + model_class
