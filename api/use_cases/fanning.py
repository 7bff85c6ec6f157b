"""Fan-outs: many jobs at once, their answers merged.  Started, tried out, followed; shown is what fan_views.py does."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import orjson
from sqlalchemy import Connection
from sqlalchemy.engine import Row
from sqlalchemy.exc import OperationalError

from api.use_cases.pool import Pool
from api.use_cases.submitting import Request, When, submit
from api.use_cases.watching import Progress, patiently, watch
from scheduler.fanning import FAN_OUTS, advance
from tasks import merge_texts as texts
from tasks.budget import EXPECTED_OUT
from tasks.errors import BrokerDown, InputError, LineFault, UsageError
from tasks.fanning import MOST_INPUTS, Agent, Ask, Item, Shape, asked, chat_category
from tasks.ledger import api_batches, endings, fan_outs
from tasks.ledger.fan_outs import Stage
from tasks.ledger.submit import DEFAULT_DEADLINE_S
from tasks.merging import JUDGE, MERGE, PIECES, How, Sizes, Step, Stuck, first_notes, how, next_step
from tasks.placeholders import read
from tasks.registry import Registry
from tasks.routing import NOTHING, Said
from tasks.schemas import MAX_LINE_BYTES, parse_line
from tasks.states import JobState

#: bytes of job lines that are kept in memory
IN_MEMORY = 8 * 1024 * 1024
#: who merges where nobody is named, if its class is served, and who otherwise
MERGES, MERGES_ELSE = "reason", "chat"
#: bytes that an answer is taken to have before there is one
EXPECTED_BYTES = EXPECTED_OUT * 3
#: seconds until the next look at a fan-out that another process is moving on
LOOK_S = 0.2


@dataclass(frozen=True)
class Asked:
    """One prompt as it was given, whom it is for, and what its answers may be asked as."""

    prompt: str = field(repr=False)
    category: str
    system: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class FanOut:
    """What to fan out. items: the inputs, each with the number of what it is asked; placeholders: what they have.

    merge: a word or a prompt. quorum: share of the jobs whose answers are enough. deadline: of each step.
    owner: whose it is over HTTP.
    """

    asked: Sequence[Asked]
    items: Iterable[tuple[Item, int]] = field(repr=False)
    placeholders: Sequence[str]
    merge: str = field(repr=False)
    merge_category: str | None = None
    schema: dict[str, Any] | None = field(default=None, repr=False)
    quorum: float | None = None
    said: Said = NOTHING
    name: str | None = None
    key: str | None = None
    priority: int = 0
    deadline: When = DEFAULT_DEADLINE_S
    owner: str | None = None


def of_agents(
    agents: Sequence[Agent], prompt: str, category: str, system: str | None, about: Item | None
) -> tuple[list[Asked], list[str], Iterator[tuple[Item, int]]]:
    """What agents are asked, its placeholders, and every agent's samples. about: a file, whose text follows the prompt.

    category, system: of agents that name none, and before what they say. Raises UsageError for a name used twice.
    """
    if len({agent.name for agent in agents}) != len(agents):
        raise UsageError("two agents have the same name")
    known = ["agent", *(about.values if about is not None else ())]
    if "content" in known and "{content}" not in prompt:
        prompt += "\n\n{content}"
    systems = ["\n\n".join(filter(None, (system, agent.system))) or None for agent in agents]
    found = [Asked(prompt, a.category or category, s) for a, s in zip(agents, systems, strict=True)]
    return found, known, _samples(agents, about or Item("", {}))


def _samples(agents: Sequence[Agent], about: Item) -> Iterator[tuple[Item, int]]:
    for number, agent in enumerate(agents):
        for sample in range(1, agent.samples + 1):
            name = agent.name if agent.samples == 1 else f"{agent.name} #{sample}"
            yield replace(about, name=name, values={"agent": agent.name} | dict(about.values)), number


@dataclass(frozen=True)
class Started:
    """An acknowledged fan-out. new: False where an idempotency key named one that was there."""

    fan_out_id: str
    batch_id: str
    inputs: int
    jobs: int
    new: bool


@dataclass(frozen=True)
class Estimate:
    """What a fan-out would be. cut: inputs in pieces; refused: jobs that the policy would refuse.

    piece_merges, merges: jobs, if every answer is of the length that is taken for one; levels: of the tree of merges.
    """

    inputs: int
    jobs: int
    cut: int
    refused: int
    piece_merges: int
    merges: int
    levels: int


def start(
    pool: Pool,
    fan_out: FanOut,
    on_fault: Callable[[LineFault], None] = lambda fault: None,
    on_opening: Callable[[str], None] = lambda fan_out_id: None,
) -> Started:
    """Submit the inputs' jobs, all or none; the return is the promise that they are answered and merged.

    Raises InputError and UsageError; every fault of a line is told to `on_fault` first.
    """
    made = _Made(pool.registry, fan_out)
    id_ = fan_outs.new_id()

    def promise(c: Connection, batch_id: str) -> None:
        fan_outs.begin(c, batch_id, values, fan_out.quorum)
        if fan_out.owner is not None:
            api_batches.enter_in(c, batch_id, fan_out.owner, FAN_OUTS)

    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY, prefix="offload-") as spool:
        made.write(spool)  # type: ignore[arg-type]
        values = {"id": id_, "owner": fan_out.owner, "plan": made.plan(id_), "inputs": made.inputs}
        request = Request(
            said=fan_out.said,
            name=fan_out.name or f"fan-out {id_}",
            key=fan_out.key,
            priority=fan_out.priority,
            deadline=fan_out.deadline,
            also=made.digest(),
            beside=promise,
            on_fault=lambda fault: on_fault(made.named(fault)),
            on_opening=lambda batch_id: on_opening(id_),
        )
        done = submit(pool, spool, request)  # type: ignore[arg-type]
    if not done.new:
        id_ = fan_outs.of_batch(pool.db, done.batch_id)
    return Started(id_, done.batch_id, len(made.inputs), done.jobs, done.new)


def estimate(pool: Pool, fan_out: FanOut, on_fault: Callable[[LineFault], None] = lambda fault: None) -> Estimate:
    """What `start` would submit, with everything checked and nothing written."""
    made = _Made(pool.registry, fan_out)
    faults = refused = 0
    for number, line in enumerate(made.lines(), 1):
        job = parse_line(orjson.dumps(line), number, pool.registry, fan_out.said)
        if isinstance(job, list):
            faults += len(job)
            for fault in job:
                on_fault(made.named(fault))
        else:
            refused += job.route.state is JobState.REFUSED
    if faults:
        raise InputError([LineFault(0, "", f"{faults} fault{'s' * (faults != 1)}")])
    steps = list(made.steps())
    merges = [step for step in steps if step.what != PIECES]
    return Estimate(
        inputs=len(made.inputs),
        jobs=len(made.ids),
        cut=sum(found[1] > 1 for found in made.inputs),
        refused=refused,
        piece_merges=sum(len(step.parts) for step in steps if step.what == PIECES),
        merges=sum(len(step.parts) for step in merges),
        levels=len(merges),
    )


class _Made:
    """A fan-out as job lines, and as its row keeps it."""

    def __init__(self, registry: Registry, fan_out: FanOut) -> None:
        self.inputs: list[list[Any]] = []
        self.ids: list[str] = []
        self._registry, self._fan_out = registry, fan_out
        self._how = how(fan_out.merge)
        self._category = fan_out.merge_category or _merges_by_default(registry)
        if fan_out.quorum is not None and not 0 < fan_out.quorum <= 1:
            raise UsageError("the quorum is a share: more than 0, and 1 at most")
        self._check_merge()
        self._shape = Shape(self._how in (How.JSON, How.JSON_OBJECT) and fan_out.schema is None, fan_out.schema)
        if self._how is How.JSON_OBJECT and fan_out.schema is None:
            self._shape = Shape(schema={"type": "object"})
        self._asks = [self._ask(one) for one in fan_out.asked]

    def _check_merge(self) -> int:
        """Bytes of notes that a merge has room for, 0 where none is needed; a fault before anybody works for it."""
        chat_category(self._registry, self._category, "merge category")
        if not self._how.needs_jobs:
            return 0
        what = MERGE if self._how is How.PROMPT else JUDGE
        prompt = self._fan_out.merge if what == MERGE else self._fan_out.asked[0].prompt
        return texts.notes_room(self._registry, what, self._category, prompt)

    def _ask(self, one: Asked) -> Ask:
        category = chat_category(self._registry, one.category, "category")
        prompt = one.prompt
        if self._how is How.VOTE and category.check != "label" and self._fan_out.schema is None:
            prompt += texts.VERDICT
        return Ask(read(prompt, self._fan_out.placeholders, "the prompt"), one.category, one.system)

    def lines(self) -> Iterator[dict[str, Any]]:
        """The job lines; `inputs` and `ids` grow with them."""
        touches = self._fan_out.said.touches
        for found in asked(self._fan_out.items, self._asks, self._shape, touches, self._registry):
            if len(self.inputs) >= MOST_INPUTS:
                raise UsageError(f"a fan-out has {MOST_INPUTS:,} inputs at most")
            self.inputs.append([found.name, len(found.lines), found.ask])
            self.ids += [line["id"] for line in found.lines]
            yield from found.lines

    def write(self, spool: BinaryIO) -> None:
        """Write the lines for submit to read."""
        for line in self.lines():
            raw = orjson.dumps(line)
            if len(raw) > MAX_LINE_BYTES:
                raise UsageError(f"the job for {line['id']} is longer than {MAX_LINE_BYTES >> 20} MiB")
            spool.write(raw + b"\n")

    def named(self, fault: LineFault) -> LineFault:
        """A fault of a line, by the name of its input."""
        where = f"{self.ids[fault.line - 1]}: " if 0 < fault.line <= len(self.ids) else ""
        return LineFault(0, f"{where}{fault.field}".rstrip(": "), fault.reason)

    def plan(self, id_: str) -> dict[str, Any]:
        """What merging needs to know; see tasks/ledger/fan_outs.py."""
        said, one = self._fan_out.said, self._fan_out.asked
        consent = said.consent
        return {
            "name": self._fan_out.name or id_,
            "how": self._how.value,
            "prompt": self._fan_out.merge if self._how is How.PROMPT else None,
            "category": self._category,
            "asks": [{"category": a.category, "system": a.system, "request": texts.request(a.prompt)} for a in one],
            "shape": self._shape.said,
            "said": {
                "audience": said.audience,
                "security": said.security,
                "tier": said.tier.value if said.tier else None,
                "consent": {"why": consent.why, "who": consent.who, "at": consent.at} if consent else None,
                "app": said.app,
            },
        }

    def digest(self) -> str:
        """What of a fan-out its lines do not say, for the idempotency key."""
        plan = {k: v for k, v in self.plan("").items() if k not in ("name", "said")}
        kept = orjson.dumps([plan, self.inputs, self._fan_out.quorum], option=orjson.OPT_SORT_KEYS)
        return hashlib.blake2b(kept, digest_size=16).hexdigest()

    def steps(self) -> Iterator[Step]:
        """The merges there would be, if every answer had EXPECTED_BYTES, or less where a merge has little room.

        A tree of longer ones might never get smaller, which only the answers can tell.
        """
        plan, called = self.plan(""), [str(found[0]) for found in self.inputs]
        rooms = [
            texts.notes_room(self._registry, PIECES, ask["category"], ask["request"], ask["system"])
            for ask in plan["asks"]
        ]
        merged = self._check_merge()
        expected = min(EXPECTED_BYTES, *(most // 4 for most in (*rooms, merged) if most))
        sizes = Sizes(
            lambda note: expected,
            lambda note: min(expected, len(texts.label(called, note).encode())),
            lambda note, most: [note],
        )
        notes, last, number = list(first_notes(found[1] for found in self.inputs)), None, 1
        with suppress(Stuck):
            while step := next_step(
                self._how, notes, number, last, sizes, lambda note: rooms[self.inputs[note.first][2]], merged
            ):
                yield step
                notes, last, number = list(step.notes), step, number + 1


def _merges_by_default(registry: Registry) -> str:
    category = registry.categories[MERGES]
    return MERGES if registry.classes[category.model_class].serve else MERGES_ELSE


# --- following --------------------------------------------------------------------------------------------


def follow(pool: Pool, fan_out_id: str, timeout_s: float | None) -> Iterator[tuple[Row[Any], Progress]]:
    """(row, progress of its step) until the fan-out is over or the time has passed; it is moved on meanwhile.

    The last one yielded of a step is its end.
    """
    until = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        row = patiently(lambda: fan_outs.one(pool.db, fan_out_id))
        if row.state != Stage.RUNNING:
            return
        left = None if until is None else max(0.0, until - time.monotonic())
        for progress in watch(pool, row.step_batch_id, left):
            yield row, progress
            if row.quorum is not None and not row.step and _answers(progress) >= row.quorum:
                break
        if until is not None and time.monotonic() >= until:
            return
        try:
            moved = advance(pool.db, pool.registry, fan_out_id)
        except OperationalError:  # the database went away: the next look waits for it
            moved = None
        if moved is None:
            time.sleep(LOOK_S)
        with suppress(BrokerDown):  # beat sends it later
            pool.dispatch()


def cancel(pool: Pool, fan_out_id: str) -> int:
    """End a fan-out and the jobs that it still has before it; how many. One that is over stays as it is."""
    while True:
        row = fan_outs.one(pool.db, fan_out_id)
        if row.state != Stage.RUNNING or fan_outs.end(pool.db, row, Stage.CANCELLED, "somebody cancelled it"):
            return endings.cancel(pool.db, row.step_batch_id)  # once more, where whoever ended it came no further


def _answers(progress: Progress) -> int:
    return progress.counts["done"] + progress.counts["escalated"]
