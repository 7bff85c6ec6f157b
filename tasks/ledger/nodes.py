"""Nodes: what people want of each, how far its workers are with it, and what went wrong on the way.

    wanted  serving | drained | stopped                a row of `nodes`; without one, serving
    phase   serving ─► draining ─► drained ─► stopped  a worker's, which follows (workers/draining.py)

A wish names no command and no address: what is run for it is the worker's own configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.engine import Row

from tasks.ledger.claims import Identity
from tasks.ledger.database import Database, insert_new, retried
from tasks.tables import Event, Node, Worker
from tasks.validation import clean

events = Event.__table__  # type: ignore[attr-defined]
nodes = Node.__table__  # type: ignore[attr-defined]
workers = Worker.__table__  # type: ignore[attr-defined]

#: the kind of the events that say why a wish was not fulfilled
TROUBLE = "node_trouble"


class Wanted(StrEnum):
    """What people want of a node."""

    SERVING = "serving"
    DRAINED = "drained"  #: nothing runs, no model of ours is loaded
    STOPPED = "stopped"  #: nor does its model server run


class Phase(StrEnum):
    """How far a worker is with what is wanted of its node."""

    SERVING = "serving"
    DRAINING = "draining"  #: takes nothing new; what runs goes on
    DRAINED = "drained"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Wish:
    """What is wanted of a node since when; `at` is 0 where nobody said anything."""

    wanted: Wanted = Wanted.SERVING
    at: float = 0.0


@retried
def want(db: Database, node: str, wanted: Wanted) -> Wish:
    """Want this of a node from now on; workers that start later follow it, too."""
    with db.write() as c:
        at = db.now(c)
        insert_new(c, nodes, [{"name": node, "wanted": wanted, "at": at}])
        c.execute(update(nodes).where(nodes.c.name == node).values(wanted=wanted, at=at))
    return Wish(wanted, at)


def wish(db: Database, node: str) -> Wish:
    """What is wanted of a node now."""
    return wishes(db).get(node, Wish())


def wishes(db: Database) -> dict[str, Wish]:
    """What is wanted of the nodes of which anything was said."""
    with db.read() as c:
        return {row.name: Wish(Wanted(row.wanted), row.at) for row in c.execute(select(nodes))}


def names(db: Database) -> list[str]:
    """The nodes that have, or had lately, a worker, and those of which something is wanted."""
    with db.read() as c:
        there = c.execute(select(workers.c.node)).scalars().all()
        return sorted({*there, *c.execute(select(nodes.c.name)).scalars()})


def seen(db: Database) -> list[tuple[Row[Any], float]]:
    """Every worker's row, with the seconds since its last heartbeat by the database's clock."""
    with db.read() as c:
        now = db.now(c)
        return [(row, max(0.0, now - row.last_seen)) for row in c.execute(select(workers).order_by(workers.c.name))]


@retried
def set_phase(db: Database, me: Identity, phase: Phase, detail: str, in_flight: int) -> None:
    """A worker says how far it is; one that does not serve is not counted by dispatch from here on."""
    away = {} if phase is Phase.SERVING else {"consuming": False}
    with db.write(durable=False) as c:
        mine = workers.c.name == me.name, workers.c.run_id == me.run_id
        c.execute(update(workers).where(*mine).values(phase=phase, detail=clean(detail), in_flight=in_flight, **away))


@retried
def complain(db: Database, me: Identity, wish: Wish, trouble: str) -> None:
    """A worker says why it does not fulfil a wish."""
    detail = {"trouble": clean(trouble), "wish": wish.at}
    with db.write() as c:
        # whoever wished it waits for the answer: it is no news to anybody else
        row = {"at": db.now(c), "kind": TROUBLE, "subject": me.name, "detail": detail, "noticed": True}
        c.execute(insert(events).values(row))


def complaints(db: Database, of: Sequence[str], wish: Wish) -> dict[str, str]:
    """Why these workers do not fulfil a wish: worker -> its last words."""
    with db.read() as c:
        query = select(events).where(events.c.kind == TROUBLE, events.c.subject.in_(of)).order_by(events.c.id)
        rows = c.execute(query.where(events.c.at >= wish.at)).all()
    return {row.subject: row.detail["trouble"] for row in rows if row.detail["wish"] == wish.at}
