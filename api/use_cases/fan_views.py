"""A fan-out as people and programs see it: its steps, the tree of its merges, and its result as a stream of bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.engine import Row

from api.use_cases.pool import Pool
from api.use_cases.watching import counts
from tasks import merge_texts as texts
from tasks.errors import NotFound
from tasks.ledger import fan_outs, reading
from tasks.ledger.database import Database
from tasks.ledger.fan_outs import Stage, Standing
from tasks.merging import JUDGE, How, Note, Step, by_input, first_notes
from tasks.tables import Job

#: answers that are read at once
AT_ONCE = 200

jobs = Job.__table__  # type: ignore[attr-defined]


def summary(pool: Pool, row: Row[Any]) -> dict[str, Any]:
    """How it stands, in figures: its steps with their batches, and what is missing once it is over."""
    steps = []
    for number, batch_id in enumerate(fan_outs.batch_ids(row)):
        batch = reading.batch(pool.db, batch_id)
        what = row.steps[number - 1]["what"] if number else "inputs"
        steps.append({"what": what, "batch": batch_id, "state": batch.state, "total": batch.total, **counts(batch)})
    found: dict[str, Any] = {
        "id": row.id,
        "name": row.plan["name"],
        "state": row.state,
        "merge": row.plan["how"],
        "inputs": len(row.inputs),
        "created_at": row.created_at,
        "finished_at": row.finished_at,
        "steps": steps,
    }
    if row.error:
        found["error"] = row.error
    if row.state != Stage.RUNNING:
        found["missing"] = fan_outs.standing(pool.db, row).missing
    return found


# --- the tree ---------------------------------------------------------------------------------------------


def tree(pool: Pool, row: Row[Any]) -> list[dict[str, Any]]:
    """What is merged with what: {name, what, state, parts}, the parts of a merge inside it, as far as is known."""
    steps = [Step.of(kept) for kept in row.steps]
    states = [_states(pool.db, batch_id) for batch_id in fan_outs.batch_ids(row)]
    names = fan_outs.names(row)
    notes = steps[-1].notes if steps else first_notes(found[1] for found in row.inputs)
    return [_node(note, steps, states, names) for note in _whole(notes)]


def _states(db: Database, batch_id: str) -> dict[int, tuple[str, str]]:
    """line -> its id and state."""
    with db.read() as c:
        query = select(jobs.c.line, jobs.c.line_id, jobs.c.state).where(jobs.c.batch_id == batch_id)
        return {line: (line_id, state) for line, line_id, state in c.execute(query)}


def _node(note: Note, steps: list[Step], states: list[dict[int, tuple[str, str]]], names: list[str]) -> dict[str, Any]:
    line_id, state = states[note.step][note.line]
    if note.step == 0:
        return {"name": line_id, "what": "input", "state": state}
    step = steps[note.step - 1]
    parts = [_node(part, steps, states, names) for part in _whole(step.parts[note.line - 1])]
    return {"name": texts.label(names, note), "what": step.what, "state": state, "parts": parts}


def _whole(notes: Any) -> Iterator[Note]:
    """The notes, those once that are there in pieces."""
    last = None
    for note in notes:
        if note.whole != last:
            yield note
        last = note.whole


# --- the result -------------------------------------------------------------------------------------------


def result(pool: Pool, row: Row[Any]) -> Iterator[bytes]:
    """The result, piece by piece: text, or JSON for what is JSON. Raises NotFound where there is none (yet)."""
    if row.state != Stage.DONE:
        why = f": {row.error}" if row.error else ""
        raise NotFound(f"fan-out {row.id} is {row.state} and has no result{why}")
    at, kind = fan_outs.standing(pool.db, row), How(row.plan["how"])
    match kind:
        case How.CONCAT:
            return _concatenated(pool, row, at)
        case How.JSON:
            return _listed(pool, row, at)
        case How.JSON_OBJECT:
            return iter([_object(pool, row, at)])
        case How.VOTE:
            return iter([_vote(pool, row, at)])
        case _:
            note = at.notes[0]
            output = fan_outs.answers_of(pool.db, row, [note])[note.step, note.line].output
            return iter([texts.text_of(output).encode()])


def is_json(row: Row[Any]) -> bool:
    """Whether the result is JSON of the pool's making."""
    return How(row.plan["how"]) in (How.JSON, How.JSON_OBJECT, How.VOTE)


def picked(pool: Pool, row: Row[Any]) -> dict[str, Any] | None:
    """Of a fan-out whose best answer was picked: the input it is on, and the last judge's reason if there was one."""
    if row.plan["how"] != How.BEST or row.state != Stage.DONE:
        return None
    note = fan_outs.standing(pool.db, row).notes[0]
    found: dict[str, Any] = {"input": fan_outs.names(row)[note.first]}
    if row.steps and row.steps[-1]["what"] == JUDGE:
        answer = fan_outs.answers(pool.db, row.step_batch_id, [1])
        found["reason"] = orjson.loads(answer[1].output)["reason"] if answer else None
    return found


def _answered(pool: Pool, row: Row[Any], at: Standing) -> Iterator[tuple[int, list[bytes]]]:
    """(number of an input, the outputs on it) of those that were answered, in order."""
    groups = list(by_input(at.notes))
    for start in range(0, len(groups), AT_ONCE):
        some = groups[start : start + AT_ONCE]
        found = fan_outs.answers_of(pool.db, row, (note for group in some for note in group))
        for group in some:
            yield group[0].first, [found[note.step, note.line].output for note in group]


def _every(pool: Pool, row: Row[Any], at: Standing) -> Iterator[tuple[str, bytes | None]]:
    """Every input with its output, in order."""
    names, number = fan_outs.names(row), 0
    for which, outputs in _answered(pool, row, at):
        yield from ((names[i], None) for i in range(number, which))
        yield names[which], outputs[0]
        number = which + 1
    yield from ((name, None) for name in names[number:])


def _concatenated(pool: Pool, row: Row[Any], at: Standing) -> Iterator[bytes]:
    for number, (name, output) in enumerate(_every(pool, row, at)):
        text = "(no answer)" if output is None else texts.text_of(output)
        yield f"{chr(10) * 2 if number else ''}## {name}\n\n{text}".encode()


def _listed(pool: Pool, row: Row[Any], at: Standing) -> Iterator[bytes]:
    for number, (name, output) in enumerate(_every(pool, row, at)):
        found = {"input": name, "output": None if output is None else orjson.Fragment(output)}
        yield (b",\n " if number else b"[") + orjson.dumps(found)
    yield b"]"


def _object(pool: Pool, row: Row[Any], at: Standing) -> bytes:
    """The answers as one object; `missing` in it names the inputs that have none."""
    found = [orjson.loads(outputs[0]) for _, outputs in _answered(pool, row, at)]
    return orjson.dumps(texts.joined([*found, *([{"missing": at.missing}] * bool(at.missing))]))


def _vote(pool: Pool, row: Row[Any], at: Standing) -> bytes:
    """Each input has one vote, that of most of its pieces."""
    votes = (next(iter(texts.majority(map(texts.cast, outputs)))) for _, outputs in _answered(pool, row, at))
    return orjson.dumps(texts.elected(votes, len(row.inputs), at.missing))
