"""What an idempotency key stands for: the lines and what was said of them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from api.use_cases.pool import Pool
from api.use_cases.submitting import Request, Submitted, submit
from tasks.errors import Conflict
from tasks.settings import Settings
from tasks.tables import Batch

LINES = b'{"category": "summarize", "prompt": "a text"}\n'
MOMENT = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """A pool that nothing was done in."""
    made = Pool(Settings(home=tmp_path))
    yield made
    made.db.close()


def said(pool: Pool, request: Request) -> Submitted:
    return submit(pool, io.BytesIO(LINES), request)


def batches(pool: Pool) -> int:
    with pool.db.read() as c:
        return len(c.execute(Batch.__table__.select()).all())  # type: ignore[attr-defined]


@pytest.mark.parametrize("deadline", [1800.0, MOMENT])
def test_the_same_submit_again_is_the_same_batch(pool: Pool, deadline: float | datetime) -> None:
    """Also with the same deadline, a span or a moment, with its needs in another order, and under another name."""
    needs = [said(pool, Request()).batch_id for _ in range(2)]
    first = Request(key="k", priority=3, needs=needs, deadline=deadline, name="one")
    there = said(pool, first)
    again = said(pool, replace(first, needs=[needs[1], *needs], name="another"))
    assert (there.new, again.new) == (True, False)
    assert again.batch_id == there.batch_id


def test_a_moment_is_the_same_in_every_zone(pool: Pool) -> None:
    """It is when it is, however it is written."""
    there = said(pool, Request(key="k", deadline=MOMENT))
    assert said(pool, Request(key="k", deadline=MOMENT.astimezone())).batch_id == there.batch_id


@pytest.mark.parametrize("other", ["needs", "priority", "deadline"])
def test_a_key_with_something_else_said_is_a_conflict(pool: Pool, other: str) -> None:
    """Whoever asks for other terms is not told that he has them."""
    needed = said(pool, Request()).batch_id
    there = said(pool, Request(key="k"))
    more: dict[str, Any] = {other: {"needs": [needed], "priority": 1, "deadline": 60.0}[other]}
    with pytest.raises(Conflict, match=f"priority, deadline or dependency, in batch {there.batch_id}"):
        said(pool, replace(Request(key="k"), **more))
    assert batches(pool) == 2
