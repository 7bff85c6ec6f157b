"""Nodes: who is there, what is wanted of them, and waiting until they have done it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from api.use_cases.pool import Pool
from tasks.errors import NotFound
from tasks.ledger import nodes
from tasks.ledger.nodes import Phase, Wanted, Wish

#: phases that fulfil a wish
FULFILLED = {
    Wanted.SERVING: (Phase.SERVING,),
    Wanted.DRAINED: (Phase.DRAINED, Phase.STOPPED),
    Wanted.STOPPED: (Phase.STOPPED,),
}
#: what a worker's health is while its server is not there
SERVERLESS = ("offline", "misconfigured")


@dataclass(frozen=True)
class NodeWorker:
    """One worker of a node. heartbeat_s: seconds since its last; gone: that is too long ago, it counts as dead."""

    node: str
    provider: str
    classes: list[str]
    in_flight: int
    capacity: int
    heartbeat_s: float
    gone: bool
    phase: str
    wanted: str
    health: str
    detail: str

    @property
    def name(self) -> str:
        """As the ledger calls it."""
        return f"{self.node}/{self.provider}"


@dataclass(frozen=True)
class Following:
    """How far a node's living workers are with a wish. now: what is wanted by now; troubles: worker -> what failed."""

    wish: Wish
    now: Wish
    workers: list[NodeWorker]
    troubles: dict[str, str]

    @property
    def left(self) -> list[NodeWorker]:
        """Those that still have something before them; one that serves without its server has."""
        done = FULFILLED[self.wish.wanted]
        return [w for w in self.workers if w.name not in self.troubles and (w.phase not in done or self._waits(w))]

    def _waits(self, worker: NodeWorker) -> bool:
        return self.wish.wanted is Wanted.SERVING and worker.health in SERVERLESS


def all_workers(pool: Pool) -> list[NodeWorker]:
    """Every worker that the ledger knows, those that are gone included."""
    wishes = nodes.wishes(pool.db)
    gone_s = pool.settings.times.worker_gone
    return [
        NodeWorker(
            node=row.node,
            provider=row.provider,
            classes=row.classes,
            in_flight=row.in_flight,
            capacity=row.capacity,
            heartbeat_s=ago,
            gone=ago > gone_s,
            phase=row.phase,
            wanted=wishes.get(row.node, Wish()).wanted,
            health=row.health,
            detail=row.detail,
        )
        for row, ago in nodes.seen(pool.db)
    ]


def without_workers(pool: Pool) -> dict[str, Wish]:
    """The nodes that are wanted not to serve and have no worker: one that starts there would follow."""
    there = {row.node for row, _ in nodes.seen(pool.db)}
    kept = {name: wish for name, wish in nodes.wishes(pool.db).items() if wish.wanted is not Wanted.SERVING}
    return {name: wish for name, wish in sorted(kept.items()) if name not in there}


def nodes_named(pool: Pool) -> list[str]:
    """The names of the nodes there are."""
    return nodes.names(pool.db)


def want(pool: Pool, name: str, wanted: Wanted) -> Wish:
    """Want this of a node; raises NotFound with the nodes there are."""
    there = nodes_named(pool)
    if name not in there:
        raise NotFound(f"there is no node {name[:80]!r}; there are: {', '.join(there) or 'none yet'}")
    return nodes.want(pool.db, name, wanted)


def resume(pool: Pool, name: str) -> Wish:
    """Let a node serve again; raises NotFound."""
    return want(pool, name, Wanted.SERVING)


def follow(pool: Pool, name: str, wish: Wish, timeout_s: float | None, every_s: float = 0.2) -> Iterator[Following]:
    """How far a node is, until nobody has anything left to do or the time has passed; the last one is the end."""
    until = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        alive = [w for w in all_workers(pool) if w.node == name and not w.gone]
        now = nodes.wish(pool.db, name)
        step = Following(wish, now, alive, nodes.complaints(pool.db, [w.name for w in alive], wish))
        yield step
        at = time.monotonic()
        if not step.left or now != wish or (until is not None and at >= until):
            return
        time.sleep(every_s if until is None else max(0.0, min(every_s, until - at)))
