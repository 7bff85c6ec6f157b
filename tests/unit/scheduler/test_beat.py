"""What beat sends is one table, and Celery gets it whole."""

from __future__ import annotations

import pytest
from celery.schedules import crontab

from scheduler.beat import schedule, table
from tasks.queues import RUN_ROLLUP, SCHEDULER_QUEUE, SWEEP
from tasks.settings import Times


@pytest.mark.parametrize("times", [Times(), Times().divided(10)])
def test_celery_gets_the_table(times: Times) -> None:
    """Every row is sent by name to the scheduler's queue, and a tick that nobody ran in time is dropped."""
    made = schedule(times)
    assert set(made) == {row.task for row in table(times)}
    for row in table(times):
        entry = made[row.task]
        when = row.every if row.minute is None else crontab(minute=row.minute)
        assert (entry["task"], entry["schedule"]) == (row.task, when)
        assert entry["options"] == {"queue": SCHEDULER_QUEUE, "expires": row.expires, "ignore_result": True}


def test_every_row_says_why() -> None:
    """A service has a reason, an interval and an end."""
    for row in table(Times()):
        assert row.why
        assert 0 < row.expires <= row.every


def test_the_sweep_is_as_often_as_recovery_counts_on() -> None:
    """A lost slice is found within the time it is given and one sweep."""
    assert {row.task: row.every for row in table(Times())}[SWEEP] == Times().sweep


def test_the_rollup_runs_at_five_past_every_hour() -> None:
    """As the helpers' own hourly one did, whatever times are divided by."""
    assert schedule(Times())[RUN_ROLLUP]["schedule"] == crontab(minute=5)
    assert schedule(Times().divided(10))[RUN_ROLLUP]["schedule"] == crontab(minute=5)
