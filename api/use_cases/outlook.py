"""What may be said of an open batch's future: its place, its rate, when it will be over, and why its jobs wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.use_cases.pool import Pool
from api.use_cases.watching import is_running, live_workers
from tasks.eta import Lane, Place, lanes_of, left_s, pace, place
from tasks.ledger import reading, standing
from tasks.states import JobState


@dataclass(frozen=True)
class Reason:
    """Why jobs of a class wait, in words. stuck: none of them will run as things are."""

    words: str
    stuck: bool = False


@dataclass(frozen=True)
class Outlook:
    """An open batch from here on. rate: its jobs per second lately; left_s: seconds to go, None where `why` says why.

    waiting: class -> why its jobs wait. needs: the batches that it waits for, with the jobs each still has open.
    """

    rate: float
    left_s: float | None
    why: str | None
    place: Place
    waiting: dict[str, str]
    needs: dict[str, int]


def outlook(pool: Pool, row: Any) -> Outlook:
    """The outlook of an open batch, given its row."""
    needs = {r.id: r.open for r in standing.waits_for(pool.db, [row.id]).get(row.id, ())}
    live = live_workers(pool, reading.all_workers(pool.db))
    held = _held(row, needs)
    reasons = {
        name: _reason(pool, row.id, name, states, [w for w in live if name in w.classes], held)
        for name, states in reading.waiting_by_class(pool.db, row.id).items()
    }
    lanes = _lanes(pool, row.id, list(reasons), live)
    paces = [(lane, pace(lane, row.touched_at)) for lane in lanes]
    known = [(lane, found) for lane, found in paces if found is not None]
    unknown = [_classes(row.id, lane) for lane, found in paces if found is None]
    why = held or _stuck(reasons) or (f"no job of class {unknown[0]} has ended yet" if unknown else None)
    return Outlook(
        rate=sum(found.rate(row.id) for _, found in known),
        left_s=None if why else max((left_s(row.id, row.priority, lane, found) for lane, found in known), default=0.0),
        why=why,
        place=place(row.id, row.priority, [] if held else lanes),
        waiting={name: reason.words for name, reason in reasons.items()},
        needs=needs,
    )


def _held(row: Any, needs: Mapping[str, int]) -> str | None:
    if row.paused_at is not None:
        return f"it is paused; go on with: offload resume {row.id}"
    return f"it waits for {', '.join(needs)}" if needs else None


def _stuck(reasons: Mapping[str, Reason]) -> str | None:
    return next((reason.words for reason in reasons.values() if reason.stuck), None)


def _classes(batch_id: str, lane: Lane) -> str:
    return ", ".join(sorted(some.model_class for some in lane.waiting if some.batch_id == batch_id))


def _lanes(pool: Pool, batch_id: str, classes: Sequence[str], live: Sequence[Any]) -> list[Lane]:
    lanes = lanes_of(classes, [w.classes for w in live])
    capacities = [sum(w.capacity for w in live if names & set(w.classes)) for names in lanes]
    return [
        standing.lane(pool.db, batch_id, names, capacity) for names, capacity in zip(lanes, capacities, strict=True)
    ]


def _reason(
    pool: Pool, batch_id: str, name: str, states: Mapping[str, int], serving: Sequence[Any], held: str | None
) -> Reason:
    workers = ", ".join(w.name for w in serving)
    if running := states.get(JobState.RUNNING):
        return Reason(f"{running} with {workers or 'a worker'}")
    if held:
        return Reason(held, stuck=True)
    if not is_running(pool):
        return Reason("the pool is not running: offload up", stuck=True)
    if reading.all_held_back(pool.db, batch_id, name, [w.reach for w in serving]):
        words = f"no server is near enough: the jobs may not go as far as class {name} reaches"
        return Reason(words, stuck=True)
    if not serving:
        return Reason(f"no live worker serves class {name}: offload doctor", stuck=True)
    if not any(w.consuming for w in serving):
        return Reason("; ".join(f"{w.name} is {w.health}: {w.detail}" for w in serving), stuck=True)
    if error := reading.last_error(pool.db, batch_id, name):
        return Reason(f"waits to be tried again: {error}")
    return Reason(f"waits for its turn on {workers}")
