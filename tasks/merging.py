"""How the answers of a fan-out come together: what is merged with what, and what a merge asks.  Pure.

    inputs ──► pieces …  where a text was cut, the answers on its pieces first
           ──► merges …  a prompt, or a judge; what does not fit one context is merged in groups, and again: a tree
           ──► result    concat, json, json-object and vote need no job

A *note* is an answer, or a piece of a long one, by reference: planning looks at sizes only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from tasks.errors import PoolError, UsageError
from tasks.registry import nearest

#: bytes that the heading of a note takes beside its label, or instead of it
HEADING = 24
#: where the notes go in a prompt that merges
RESULTS = "results"
#: what a step's jobs do
PIECES, MERGE, JUDGE = "pieces", "merge", "judge"


class How(StrEnum):
    """How answers are merged."""

    CONCAT = "concat"  #: one after the other, under the inputs' names
    JSON = "json"  #: a JSON array
    JSON_OBJECT = "json-object"  #: the objects as one
    VOTE = "vote"  #: the majority, and the count
    BEST = "best"  #: the one that a judge picks
    PROMPT = "prompt"  #: what a model makes of them

    @property
    def needs_jobs(self) -> bool:
        """Whether a model merges."""
        return self in (How.BEST, How.PROMPT)


def how(merge: str) -> How:
    """What `--merge` says: a word, or a prompt with {results}; raises UsageError."""
    words = [h.value for h in How if h is not How.PROMPT]
    if merge in words:
        return How(merge)
    if f"{{{RESULTS}}}" in merge:
        return How.PROMPT
    near = nearest(merge, words) if len(merge) <= 20 else f" (one of {', '.join(words)})"
    raise UsageError(f"the merge is no such word{near}, and no prompt, which holds {{{RESULTS}}}")


class Note(NamedTuple):
    """An answer by reference: on which inputs, from the first to the last; of which step's job line.

    start, end: characters of it, where it is a piece of one.
    """

    first: int
    last: int
    step: int
    line: int
    start: int | None = None
    end: int | None = None

    @property
    def whole(self) -> Note:
        """The answer that it is a piece of."""
        return self._replace(start=None, end=None)


@dataclass(frozen=True, slots=True)
class Step:
    """Jobs that merge. parts: what each of them is given. notes: what is there when they are done, in order."""

    what: str  #: pieces, merge or judge
    parts: tuple[tuple[Note, ...], ...]
    notes: tuple[Note, ...]

    @property
    def is_last(self) -> bool:
        """Whether its one job gives the result."""
        return self.what != PIECES and len(self.notes) == 1

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Step:
        """A step as the ledger keeps it."""
        parts = tuple(tuple(Note(*note) for note in part) for part in kept["parts"])
        return cls(kept["what"], parts, tuple(Note(*note) for note in kept["notes"]))


@dataclass(frozen=True, slots=True)
class Sizes:
    """What planning knows of notes. of: bytes; label: bytes; cut: a note's pieces of so many bytes at most."""

    of: Callable[[Note], int]
    label: Callable[[Note], int]
    cut: Callable[[Note, int], list[Note]] = field(repr=False)

    def shown(self, note: Note) -> int:
        """Bytes that a note takes in a prompt."""
        return self.of(note) + self.label(note) + HEADING


class Stuck(PoolError):
    """A tree of merges that does not get smaller."""


def first_notes(pieces: Iterable[int]) -> Iterator[Note]:
    """The notes that the inputs' own jobs give. pieces: how many lines each input has."""
    line = 0
    for number, count in enumerate(pieces):
        for _ in range(count):
            line += 1
            yield Note(number, number, 0, line)


def next_step(
    kind: How,
    notes: Sequence[Note],
    number: int,
    last: Step | None,
    sizes: Sizes,
    most: Callable[[Note], int],
    most_merged: int,
) -> Step | None:
    """What follows on the step `last`: step `number`, from the notes that were answered; None where nothing does.

    most: bytes of notes that the class of a note's input holds, for pieces; most_merged: those of the merge's class.
    Raises Stuck where the step would leave as many notes as the one before.
    """
    if last is not None and last.is_last:
        return None
    merges_already = last is not None and last.what != PIECES
    step = None if kind is How.VOTE or merges_already else _pieces(notes, number, sizes, most)
    step = step or _merges(kind, notes, number, sizes, most_merged)
    if step is not None and last is not None and last.what == step.what and len(last.notes) <= len(step.notes):
        raise Stuck("the merges do not get shorter: ask for shorter ones, or name a class with a larger context")
    return step


def by_input(notes: Iterable[Note]) -> Iterator[list[Note]]:
    """The notes, those on one input together."""
    found: list[Note] = []
    for note in notes:
        if found and (note.first, note.last) != (found[-1].first, found[-1].last):
            yield found
            found = []
        found.append(note)
    if found:
        yield found


def _pieces(notes: Sequence[Note], number: int, sizes: Sizes, most: Callable[[Note], int]) -> Step | None:
    parts: list[tuple[Note, ...]] = []
    left: list[Note] = []
    for group in by_input(notes):
        if len(group) == 1:
            left += group
        else:
            _take(grouped(group, most(group[0]), sizes), number, parts, left)
    return Step(PIECES, tuple(parts), tuple(left)) if parts else None


def _merges(kind: How, notes: Sequence[Note], number: int, sizes: Sizes, most: int) -> Step | None:
    if not kind.needs_jobs or not notes or (kind is How.BEST and len(notes) == 1):
        return None
    what = JUDGE if kind is How.BEST else MERGE
    groups = list(grouped(notes, most, sizes, whole=kind is How.BEST))
    if len(groups) == 1:
        return Step(what, (tuple(groups[0]),), (_covers(groups[0], number, 1),))
    parts: list[tuple[Note, ...]] = []
    left: list[Note] = []
    _take(groups, number, parts, left)
    return Step(what, tuple(parts), tuple(left))


def _take(groups: Iterable[list[Note]], number: int, parts: list[tuple[Note, ...]], left: list[Note]) -> None:
    """A job for every group but those of one note, which is passed on as it is."""
    for group in groups:
        if len(group) == 1:
            left.append(group[0])
        else:
            parts.append(tuple(group))
            left.append(_covers(group, number, len(parts)))


def _covers(group: Sequence[Note], step: int, line: int) -> Note:
    return Note(group[0].first, group[-1].last, step, line)


def grouped(notes: Sequence[Note], most: int, sizes: Sizes, *, whole: bool = False) -> Iterator[list[Note]]:
    """The notes in groups that take `most` bytes at most, in order; all but the last hold two or more.

    Where they do not all fit, a note that takes more than half of it is cut; `whole`: only its first piece is shown.
    """
    if sum(map(sizes.shown, notes)) <= most:
        yield list(notes)
        return
    group: list[Note] = []
    taken = 0
    for note in _cut(notes, most // 2, sizes, whole):
        size = sizes.shown(note)
        if group and taken + size > most:
            yield group
            group, taken = [], 0
        group.append(note)
        taken += size
    if group:
        yield group


def _cut(notes: Sequence[Note], most: int, sizes: Sizes, whole: bool) -> Iterator[Note]:
    for note in notes:
        if sizes.shown(note) <= most:
            yield note
        else:
            pieces = sizes.cut(note, most - sizes.label(note) - HEADING)
            yield from pieces[:1] if whole else pieces
