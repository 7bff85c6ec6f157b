"""What is merged with what: every answer once, nothing too large for its context, and an end in sight."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks import merge_texts as texts
from tasks.errors import UsageError
from tasks.merging import (
    HEADING,
    JUDGE,
    MERGE,
    PIECES,
    How,
    Note,
    Sizes,
    Step,
    Stuck,
    first_notes,
    grouped,
    how,
    next_step,
)
from tests.unit.tasks.test_fanning import SMALL

LABEL = 10


def sizes(of: dict[tuple[int, int], int]) -> Sizes:
    """Notes of so many characters, by step and line; any other has 50."""

    def size(note: Note) -> int:
        return of.get((note.step, note.line), 50) if note.end is None else note.end - (note.start or 0)

    def cut(note: Note, most: int) -> list[Note]:
        begin, end = note.start or 0, note.end or size(note)
        return [note._replace(start=i, end=min(i + most, end)) for i in range(begin, end, most)]

    return Sizes(size, lambda note: LABEL, cut)


def steps(kind: How, pieces: Sequence[int], of: dict[tuple[int, int], int], most: int) -> list[Step]:
    """All steps of a fan-out whose jobs are all answered; a judge picks the first."""
    notes, last = list(first_notes(pieces)), None
    found: list[Step] = []
    while (step := next_step(kind, notes, len(found) + 1, last, sizes(of), lambda note: most, most)) is not None:
        found.append(step)
        notes, last = list(step.notes), step
        assert len(found) < 50
    return found


@example([1], {(0, 1): 333}, 400)
@example([1], {(0, 1): 700}, 400)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=30),
    st.dictionaries(st.tuples(st.just(0), st.integers(1, 60)), st.integers(1, 3_000), max_size=20),
    st.integers(400, 2_000),
)
def test_a_tree_holds_every_answer_once_and_ends(pieces: list[int], of: dict[tuple[int, int], int], most: int) -> None:
    """Pieces come together before files do; no merge is given more than fits, and the last one covers every input."""
    found = steps(How.PROMPT, pieces, of, most)
    size = sizes(of)
    for number, step in enumerate(found, 1):
        for part in step.parts:
            assert sum(map(size.shown, part)) <= most
            assert step.what == MERGE or len({note.first for note in part}) == 1, "pieces of one input"
        assert all(len(part) > 1 for part in step.parts) or step.is_last
        before = found[number - 2].notes if number > 1 else tuple(first_notes(pieces))
        given = [note.whole for part in step.parts for note in part]
        passed = [note.whole for note in step.notes if note.step != number]
        assert sorted(dict.fromkeys([*given, *passed])) == sorted({note.whole for note in before})
    kinds = [step.what for step in found]
    assert kinds == sorted(kinds, reverse=True), "first pieces, then merges"
    assert found[-1].is_last
    (last,) = found[-1].notes
    assert (last.first, last.last) == (0, len(pieces) - 1)


def test_merges_that_do_not_get_shorter_end() -> None:
    """Answers as long as all that they are made of would be merged for ever."""
    with pytest.raises(Stuck, match="do not get shorter"):
        steps(How.PROMPT, [1] * 8, {(step, line): 900 for step in range(9) for line in range(9)}, 1_000)


def test_what_needs_no_model_needs_no_step() -> None:
    """Texts are put together, values listed, votes counted by the pool; cut ones are merged first, but for a vote."""
    for kind in (How.CONCAT, How.JSON, How.JSON_OBJECT):
        assert steps(kind, [1, 1], {}, 1_000) == []
        (step,) = steps(kind, [1, 3], {}, 1_000)
        assert (step.what, [len(part) for part in step.parts]) == (PIECES, [3])
        assert step.notes == (Note(0, 0, 0, 1), Note(1, 1, 1, 1))
    assert steps(How.VOTE, [1, 3], {}, 1_000) == []


def test_a_judge_sees_the_beginning_of_a_long_answer() -> None:
    """Candidates are shown side by side; one alone needs no judge."""
    assert steps(How.BEST, [1], {}, 1_000) == []
    (step,) = steps(How.BEST, [1, 1], {(0, 1): 5_000}, 1_000)
    assert step.what == JUDGE
    assert step.parts == ((Note(0, 0, 0, 1, 0, 500 - LABEL - HEADING), Note(1, 1, 0, 2)),)


@given(st.lists(st.integers(1, 900), min_size=1), st.integers(200, 1_000))
def test_groups_fit_and_hold_two_at_least(lengths: list[int], most: int) -> None:
    """Only the last group may hold one note: so a tree gets smaller with every level."""
    size = sizes({(0, line): length for line, length in enumerate(lengths, 1)})
    groups = list(grouped(list(first_notes([1] * len(lengths))), most, size))
    assert all(sum(map(size.shown, group)) <= most for group in groups)
    assert all(len(group) > 1 for group in groups[:-1])


@pytest.mark.parametrize(
    ("said", "words"),
    [("vot", "did you mean 'vote'"), ("Write an overview of the notes", "one of concat"), ("{result}", "no such word")],
)
def test_a_merge_is_a_word_or_a_prompt(said: str, words: str) -> None:
    """A prompt holds {results}; whatever else is said is no way to merge."""
    assert how("vote") is How.VOTE
    assert how("Merge {results}") is How.PROMPT
    with pytest.raises(UsageError, match=words):
        how(said)


# --- texts ------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["yes", "Yes.", "**no**", "No", "maybe"]), min_size=1))
def test_a_vote_counts_every_voice(votes: list[str]) -> None:
    """Spellings of one verdict are one; the counts add up; a tie has no winner."""
    found = texts.elected((texts.cast(orjson.dumps(f"Because.\n{vote}")) for vote in votes), len(votes), [])
    plain = [vote.strip("*.").casefold() for vote in votes]
    counted = {vote.casefold(): n for vote, n in found["votes"].items()}
    assert counted == {vote: plain.count(vote) for vote in plain}
    first = [vote for vote, n in counted.items() if n == max(counted.values())]
    assert found["winner"] is None if len(first) > 1 else found["winner"].casefold() == first[0]
    assert found["count"] == max(counted.values())


@pytest.mark.parametrize(
    ("answer", "vote"),
    [("approve", "approve"), ("I looked.\n\n- **Reject**\n", "Reject"), ({"b": 1, "a": 2}, '{"a":2,"b":1}'), ("", "")],
)
def test_the_last_line_votes(answer: object, vote: str) -> None:
    """Bare of its dress; JSON votes as a whole, however it is spelt."""
    assert texts.cast(orjson.dumps(answer)) == vote


@pytest.mark.parametrize(
    ("values", "joined"),
    [
        ([{"a": 1}, {"b": 2}], {"a": 1, "b": 2}),
        ([{"a": [1]}, {"a": [2, 3]}, {"a": 4}], {"a": [1, 2, 3, 4]}),
        ([{"a": {"b": 1}}, {"a": {"c": 2}}], {"a": {"b": 1, "c": 2}}),
        ([{"a": 1}, {"a": 1}, {"a": True}], {"a": [1, True]}),
        ([], {}),
    ],
)
def test_objects_are_joined_key_by_key(values: list[object], joined: object) -> None:
    """Lists end to end, equal values once, and nothing is lost where they differ."""
    assert texts.joined(values) == joined


def test_what_is_missing_is_named() -> None:
    """The first ones by name, in one line each, and how many more there are."""
    assert texts.missing_words([]) == ""
    words = texts.missing_words(["a\nb.py", "x" * 300, *map(str, range(30))])
    assert "a b.py, …xxx" in words
    assert words.endswith("17 and 12 more")
    assert "a b.py" in texts.merging("{results}", [("c.py", "It is c.")], ["a\nb.py"])["prompt"]


def test_a_merge_has_room_for_something() -> None:
    """A prompt that fills its class alone is a fault, found before anybody works."""
    assert texts.notes_room(SMALL, MERGE, "tiny", "{results}") == int(824 * 3.5)
    with pytest.raises(UsageError, match="class tiny has no room for notes"):
        texts.notes_room(SMALL, MERGE, "tiny", "word " * 600 + "{results}")


def test_prompts_fit_the_room_they_were_planned_in() -> None:
    """What a plan takes a merge's prompt to have is no less than it has."""
    most = {what: texts.notes_room(SMALL, what, "tiny", "{path}: {content}") for what in (PIECES, JUDGE)}
    notes = [("name", "x" * 100)] * 7
    shown = sum(100 + 4 + HEADING for _ in notes)
    whole = int(824 * 3.5)
    assert len(texts.piecing("{path}: {content}", "n" * 200, notes)["prompt"].encode()) - shown <= whole - most[PIECES]
    judged = texts.judging("{path}: {content}", notes)
    assert len((judged["prompt"] + judged["system"]).encode()) - shown <= whole - most[JUDGE]
