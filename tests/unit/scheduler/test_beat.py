"""What beat sends is one table, and Celery gets it whole."""

from __future__ import annotations

import pytest

from scheduler.beat import schedule, table
from tasks.queues import SCHEDULER_QUEUE, SWEEP
from tasks.settings import Times


@pytest.mark.parametrize("times", [Times(), Times().divided(10)])
def test_celery_gets_the_table(times: Times) -> None:
    """Every row is sent by name to the scheduler's queue, and a tick that nobody ran in time is dropped."""
    made = schedule(times)
    assert set(made) == {row.task for row in table(times)}
    for row in table(times):
        entry = made[row.task]
        assert (entry["task"], entry["schedule"]) == (row.task, row.every)
        assert entry["options"] == {"queue": SCHEDULER_QUEUE, "expires": row.expires, "ignore_result": True}


def test_every_row_says_why() -> None:
    """A service has a reason, an interval and an end."""
    for row in table(Times()):
        assert row.why
        assert 0 < row.expires <= row.every


def test_the_sweep_is_as_often_as_recovery_counts_on() -> None:
    """A lost slice is found within the time it is given and one sweep."""
    assert {row.task: row.every for row in table(Times())}[SWEEP] == Times().sweep
