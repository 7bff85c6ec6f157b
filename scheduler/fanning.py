"""Fan-outs go on: when a step is over, the next merge is submitted, or the fan-out ends.

Beat runs it, and so does a client that waits, at any moment and at once: a step's batch is opened by the commit that
moves the fan-out on, under a key made of both, so that no merge is ever submitted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from typing import Any

import orjson
import structlog
from sqlalchemy import Connection
from sqlalchemy.engine import Row
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from tasks import merge_texts as texts
from tasks.errors import BrokerDown, Conflict, InputError, OtherTables, UsageError
from tasks.ledger import api_batches, endings, fan_outs, reading, submit
from tasks.ledger.database import Database
from tasks.ledger.fan_outs import Stage, Standing
from tasks.merging import JUDGE, MERGE, PIECES, How, Note, Sizes, Step, Stuck, next_step
from tasks.privacy import Tier, tightest
from tasks.registry import Registry
from tasks.routing import Consent, Said
from tasks.schemas import NewJob, parse_line
from tasks.splitting import LEAST, split
from tasks.states import BatchState

#: what has happened to a fan-out whose next step was submitted
MERGES = "merges"
log = structlog.get_logger(__name__)

#: how the batch of a merge is marked where the fan-out came over HTTP
FAN_OUTS = "/fan-outs"


def run_once(db: Database, registry: Registry, dispatch: Callable[[], object] = lambda: None) -> Counter[str]:
    """Let every fan-out go on that can; the counts say how many merges were submitted, and how many ended how.

    dispatch: sends what was submitted; where Redis is away the sweep does so later.
    """
    counts: Counter[str] = Counter()
    for id_ in fan_outs.due(db):
        try:
            if found := advance(db, registry, id_):
                counts[found] += 1
        except (OtherTables, DBAPIError):
            raise
        except Exception as error:  # one that nobody foresaw holds up no other
            log.error("a fan-out cannot go on", fan_out=id_, error=type(error).__name__)
    if counts[MERGES]:
        with suppress(BrokerDown):
            dispatch()
    return counts


def advance(db: Database, registry: Registry, fan_out_id: str) -> str | None:
    """Let one go on where it can: `merges` when its next step was submitted, or the stage in which it has ended."""
    row = fan_outs.one(db, fan_out_id)
    if row.state != Stage.RUNNING:
        return None
    batch = reading.batch(db, row.step_batch_id)
    if _has_enough(row, batch) and fan_outs.enough(db, row):
        endings.cancel(db, row.batch_id)
        row, batch = fan_outs.one(db, fan_out_id), reading.batch(db, row.step_batch_id)
    if batch.state not in (BatchState.FINISHED, BatchState.CANCELLED):
        return None
    if batch.cancelled_at is not None and (row.step or row.enough_at is None):
        return _ended(db, row, Stage.CANCELLED, f"batch {batch.id} was cancelled")
    try:
        return _go_on(db, registry, row)
    except (UsageError, Stuck) as error:  # the configuration has changed, say: whoever waits is told why
        return _ended(db, row, Stage.FAILED, str(error))


def _has_enough(row: Row[Any], batch: Row[Any]) -> bool:
    is_open = row.step == 0 and row.quorum is not None and batch.state == BatchState.OPEN
    return is_open and batch.done + batch.escalated >= row.quorum


def _ended(db: Database, row: Row[Any], stage: Stage, error: str | None = None) -> str | None:
    return stage.value if fan_outs.end(db, row, stage, error) else None


def _go_on(db: Database, registry: Registry, row: Row[Any]) -> str | None:
    at = fan_outs.standing(db, row)
    if not at.notes:
        nothing = "its merges were not answered" if row.step else "none of its inputs was answered"
        return _ended(db, row, Stage.FAILED, f"{nothing} ({fan_outs.why_not(db, row.step_batch_id)})")
    planner = _Planner(db, registry, row, at)
    step = planner.step()
    if step is None:
        return _ended(db, row, Stage.DONE)
    return MERGES if _submit(db, row, step, planner.jobs(step)) else None


def _submit(db: Database, row: Row[Any], step: Step, merges: Iterator[NewJob]) -> bool:
    """Submit a step; whether it was this call that did."""
    batch_id, new = submit.begin(
        db,
        name=f"{row.plan['name']}: {step.what}",
        priority=row.priority,
        key=f"{row.id} step {row.step + 1}",
        deadline_s=row.deadline_s,
        kind="merge",
    )
    if not new:
        return False
    try:
        added = submit.add(db, batch_id, merges, row.priority)
        submit.open_batch(db, batch_id, added, lambda c: _promise(c, row, batch_id, step))
    except BaseException as error:
        with suppress(SQLAlchemyError):
            submit.drop_loading(db, batch_id)
        if isinstance(error, Conflict):
            return False
        raise
    return True


def _promise(c: Connection, row: Row[Any], batch_id: str, step: Step) -> None:
    """What the commit that opens a step's batch writes as well: how far the fan-out is, and whose the batch is."""
    fan_outs.move_on(c, row, batch_id, step)
    if row.owner is not None:
        api_batches.own_in(c, batch_id, row.owner, FAN_OUTS)


class _Planner:
    """What follows for one fan-out, and the jobs that do it."""

    def __init__(self, db: Database, registry: Registry, row: Row[Any], at: Standing) -> None:
        self._db, self._registry, self._row, self._at = db, registry, row, at
        self._plan: Mapping[str, Any] = row.plan
        self._names = fan_outs.names(row)
        self._how = How(self._plan["how"])

    def step(self) -> Step | None:
        """The next step; None where the result is there."""
        found = fan_outs.sizes(self._db, self._row)

        def size(note: Note) -> int:
            return found[note.step, note.line] if note.start is None else len(self._read(note).encode())

        sizes = Sizes(size, lambda note: len(texts.label(self._names, note).encode()), self._cut)
        what = MERGE if self._how is How.PROMPT else JUDGE
        most = self._room(what) if self._how.needs_jobs else 0
        pieces = cache(partial(self._room, PIECES))
        number, ask_of = self._row.step + 1, self._row.inputs
        return next_step(
            self._how, self._at.notes, number, self._at.last, sizes, lambda note: pieces(ask_of[note.first][2]), most
        )

    def jobs(self, step: Step) -> Iterator[NewJob]:
        """The step's jobs, in order; raises InputError where the configuration no longer takes one."""
        tier = fan_outs.tier(self._db, self._row) if step.what != PIECES else None
        for number, part in enumerate(step.parts, 1):
            given = fan_outs.answers_of(self._db, self._row, part)
            notes = [(texts.label(self._names, note), _text(given[note.step, note.line].output, note)) for note in part]
            tiers = tightest(tier, *(Tier(row.tier) for row in given.values()))
            line = self._line(step, part[0].first, notes) | {"id": str(number)} | ({"privacy": tiers} if tiers else {})
            job = parse_line(orjson.dumps(line), number, self._registry, said(self._plan))
            if isinstance(job, list):
                raise InputError(job)
            yield _marked(job, [orjson.loads(row.verdict) for row in given.values() if row.verdict])

    def _line(self, step: Step, first: int, notes: Sequence[tuple[str, str]]) -> dict[str, Any]:
        if step.what == PIECES:
            ask = self._plan["asks"][self._row.inputs[first][2]]
            line: dict[str, Any] = texts.piecing(ask["request"], self._names[first], notes) | self._plan["shape"]
            return line | {"category": ask["category"]} | ({"system": ask["system"]} if ask["system"] else {})
        if step.what == JUDGE:
            return texts.judging(self._request(), notes) | {"category": self._plan["category"]}
        missing = self._at.missing if step.is_last else []
        return texts.merging(self._plan["prompt"], notes, missing) | {"category": self._plan["category"]}

    def _room(self, what: str, ask: int = 0) -> int:
        """Bytes of notes that a job of this kind has room for."""
        asked = self._plan["asks"][ask]
        if what == PIECES:
            return texts.notes_room(self._registry, what, asked["category"], asked["request"], asked["system"])
        prompt = self._plan["prompt"] if what == MERGE else self._request()
        return texts.notes_room(self._registry, what, self._plan["category"], prompt, None, self._at.missing)

    def _request(self) -> str:
        return str(self._plan["asks"][0]["request"])

    def _read(self, note: Note) -> str:
        return _text(fan_outs.answers_of(self._db, self._row, [note])[note.step, note.line].output, note)

    def _cut(self, note: Note, most: int) -> list[Note]:
        start = note.start or 0
        found = []
        for piece in split(self._read(note), max(most, LEAST)):
            found.append(note._replace(start=start, end=start + len(piece)))
            start += len(piece)
        return found


def _text(output: bytes, note: Note) -> str:
    return texts.text_of(output)[note.start : note.end]


def said(plan: Mapping[str, Any]) -> Said:
    """What was said of the whole fan-out and holds for its merges; what it touches comes with the answers."""
    kept = plan["said"]
    return Said(
        audience=kept["audience"],
        security=kept["security"],
        tier=Tier(kept["tier"]) if kept["tier"] else None,
        consent=Consent(**kept["consent"]) if kept["consent"] else None,
        app=kept["app"],
    )


def _marked(job: NewJob, verdicts: Sequence[Mapping[str, Any]]) -> NewJob:
    """The job with what its parts touch, which a folder that is marked later is held against.

    The policy's rules on paths are about work on files; they were asked when the files were read.
    """
    touches = dict.fromkeys(path for verdict in verdicts for path in verdict.get("touches", ()))
    kept = dict(job.route.verdict or {})
    if touches:
        kept["touches"] = list(touches)
    if "consent" in kept:
        overruled = {name for v in verdicts for name in v.get("consent", {}).get("overruled", ())}
        kept["consent"] = kept["consent"] | {"overruled": sorted(overruled | set(kept["consent"]["overruled"]))}
    return replace(job, route=replace(job.route, verdict=kept))
