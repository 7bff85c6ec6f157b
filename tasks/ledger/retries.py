"""Which batches are retries of which, and the newest state of a line over all of them.

    A ◄── B ◄── C        retry_of: a batch of lines of the one it points at, with the same line numbers and ids
      ◄── D

The four are one family.  A line is retried only when its newest job is terminal, so its jobs' ids grow with its tries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, select
from sqlalchemy.engine import Row

from tasks.errors import UsageError
from tasks.ledger.database import parts
from tasks.states import TERMINAL, BatchState
from tasks.tables import Batch, Job

batches = Batch.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]


def family(c: Connection, batch_id: str) -> list[Row[Any]]:
    """The batch in which a batch's lines were first submitted, then every retry of them; loading ones too."""
    top: str = batch_id
    while above := c.execute(select(batches.c.retry_of).where(batches.c.id == top)).scalar():
        top = above
    return [*c.execute(select(batches).where(batches.c.id == top)), *below(c, top)]


def below(c: Connection, batch_id: str) -> list[Row[Any]]:
    """The retries of a batch, and theirs; loading ones too."""
    found: list[Row[Any]] = []
    ids = [batch_id]
    while ids:
        query = select(batches).where(batches.c.retry_of.in_(ids)).order_by(batches.c.created_at, batches.c.id)
        rows = c.execute(query).all()
        found += rows
        ids = [row.id for row in rows]
    return found


def newest(c: Connection, ids: Sequence[str], lines: Sequence[int], *, ended: bool = False) -> dict[int, Row[Any]]:
    """Of each of these lines the newest job in these batches; `ended`: of those that are terminal."""
    found: dict[int, Row[Any]] = {}
    for some in parts(list(lines)):
        which = [jobs.c.batch_id.in_(ids), jobs.c.line.in_(some)]
        if ended:
            which.append(jobs.c.state.in_(TERMINAL))
        last = select(func.max(jobs.c.id)).where(*which).group_by(jobs.c.line)
        found |= {row.line: row for row in c.execute(select(jobs).where(jobs.c.id.in_(last)))}
    return found


class BeingRetried(UsageError):
    """Another retry of the same family is being submitted."""


def begin_alone(c: Connection, batch_id: str) -> None:
    """Hold the family until the end of this transaction; BeingRetried where one of it is still loading."""
    first = family(c, batch_id)[0].id
    c.execute(select(batches.c.id).where(batches.c.id == first).with_for_update())
    for row in family(c, batch_id):
        if row.state == BatchState.LOADING:
            raise BeingRetried(f"batch {row.id}, which retries lines of {batch_id}, is being submitted; look after it")
