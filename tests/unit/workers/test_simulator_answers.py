"""The simulator's answers have the shape of the work asked for."""

from __future__ import annotations

import dataclasses
from math import isclose, sqrt

import orjson
import pytest

from tasks.categories import DEFAULT_CATEGORIES
from tasks.checks import CHECKS
from workers.simulator.answers import answer, category, compose, fits
from workers.simulator.asks import Ask, pieces, tokens
from workers.simulator.config import ModelSpec
from workers.simulator.faults import Fault, Meeting
from workers.simulator.spoiled import LEAKS

PROMPTS = (
    "Reverie is a Rust local-first memory layer.",
    "def add(a, b):\n    return a + b",
    "Is this spam or ham? Labels: spam, ham\n\nBuy now!",
)


def ask(prompt: str = PROMPTS[0], **fields: object) -> Ask:
    """An Ask of a chat model."""
    return dataclasses.replace(Ask("m", "m", ModelSpec(), prompt), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [n for n, c in DEFAULT_CATEGORIES.items() if c.kind == "chat"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_category_passes_its_check(name: str, prompt: str) -> None:
    """The pool's own check of each built-in category accepts the simulated answer."""
    kind = DEFAULT_CATEGORIES[name]
    assert CHECKS[kind.check](answer(ask(prompt, system=kind.system)), prompt) is None


def test_wrong_label_fails_the_label_check() -> None:
    """The label of fault wronglabel is refused with and without an offer."""
    for prompt in PROMPTS:
        reply = compose(ask(prompt, system="Task: classify."), Meeting(Fault("wronglabel")))
        assert CHECKS["label"](reply.text, prompt) is not None


def test_category_is_found_in_the_prompt_too() -> None:
    """The mark counts in the system text first, then in the prompt."""
    assert category("", "Task: plan. Do it") == "plan"
    assert category("Task: commit-msg.", "Task: plan.") == "commit-msg"
    assert category("", "My task: none") == ""


def test_answers_are_deterministic() -> None:
    """Model and prompt alone decide; another prompt or model has another answer."""
    assert answer(ask()) == answer(ask())
    assert answer(ask()) != answer(ask("other"))
    assert answer(ask()) != answer(ask(model="n"))


def test_plain_json_holds_the_fields_asked_for() -> None:
    """In JSON mode the fields that the prompt quotes are there."""
    made = orjson.loads(answer(ask("Return JSON with fields 'crates' and 'authors': x", shape="json")))
    assert made["simulated"] is True
    assert {"crates", "authors"} <= set(made)


def test_max_tokens_cut_the_answer() -> None:
    """No more than max_tokens are counted, and the reply says `length`."""
    reply = compose(ask(max_tokens=3))
    assert (reply.finish, reply.tokens_out, len(reply.text)) == ("length", 3, 12)


def test_thoughts_use_up_max_tokens() -> None:
    """A thinking model with few tokens ends before its answer."""
    reply = compose(ask(max_tokens=3, think=True))
    assert (reply.text, reply.finish, reply.tokens_out) == ("", "length", 3)


def test_token_counts_add_up() -> None:
    """The tokens out are those of the thoughts and of the answer."""
    reply = compose(ask(think=True))
    assert reply.tokens_out == tokens(reply.reasoning) + tokens(reply.text)
    assert reply.tokens_thinking == tokens(reply.reasoning)


def test_a_stop_text_ends_the_answer() -> None:
    """Nothing from the stop text on is said."""
    reply = compose(ask(stops=("simulated",)))
    assert (reply.text, reply.finish) == ("This is a ", "stop_sequence")


@pytest.mark.parametrize("family", LEAKS)
def test_leaks_hold_the_thoughts_and_the_answer(family: str) -> None:
    """Each family's leak keeps the answer, after thoughts."""
    reply = compose(ask(), Meeting(Fault("leak", family)))
    assert reply.text.endswith(answer(ask()))
    assert "Simulated thoughts" in reply.text


def test_empty_moves_the_answer_to_the_thoughts() -> None:
    """Nothing is left in the content."""
    reply = compose(ask(), Meeting(Fault("empty")))
    assert (reply.text, reply.reasoning) == ("", answer(ask()))


def test_huge_is_as_large_as_asked() -> None:
    """The argument is in MB, and max_tokens does not shorten it."""
    reply = compose(ask(max_tokens=5), Meeting(Fault("huge", "2")))
    assert len(reply.text) == 2_000_000
    assert len(pieces(reply.text, reply.piece)) < 1000


def vectors(fault: str = "", **fields: object) -> list[list[float | None]]:
    """The embeddings of two texts."""
    spec = ModelSpec(kind="embed", dimensions=8)
    meeting = Meeting(Fault(fault)) if fault else Meeting()
    return compose(ask("a\nb", spec=spec, inputs=["a", "b"], **fields), meeting).vectors


def test_embeddings_are_unit_vectors_of_their_text() -> None:
    """The same text has the same vector of length one, another text another."""
    first, second = vectors()
    assert [first, second] == vectors()
    assert first != second
    assert isclose(sqrt(sum(x * x for x in first if x is not None)), 1.0)


def test_spoiled_vectors() -> None:
    """Each vector fault spoils what it says."""
    assert len(vectors("vectors-short")) == 1
    assert {len(vector) for vector in vectors("vectors-dims")} == {7}
    assert vectors("vectors-zero") == [[0.0] * 8] * 2
    assert vectors("vectors-nan")[0][0] is None


def test_fewer_dimensions_on_request() -> None:
    """`dimensions` shortens the vector."""
    assert {len(vector) for vector in vectors(dimensions=4)} == {4}


def test_context_is_counted_in_tokens() -> None:
    """A prompt fits as long as it has at most 3.5 characters a token."""
    assert fits(ask("x" * 35, context=10))
    assert not fits(ask("x" * 36, context=10))
