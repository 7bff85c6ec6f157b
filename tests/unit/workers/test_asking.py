"""A job becomes a call: what the category, the class and the line say of it, each in its place."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.budget import CHARS_PER_TOKEN
from tasks.errors import Permanent
from tasks.routing import Said
from tasks.schemas import NewJob, parse_line
from tests.unit.workers.jobs import ME, REGISTRY, asked, claimed
from workers.asking import JSON_ONLY, WARMER, ask
from workers.backends import Timeouts

USER = {"role": "user", "content": "Hello"}


def test_a_prompt_is_a_chat_of_one_message() -> None:
    """A job that says nothing more asks the class's first model on this provider, with the class's options."""
    call = asked(claimed()).call
    assert (call.kind, call.model, call.messages) == ("chat", "tiny", [USER])
    assert call.options == {"num_ctx": 1000}
    assert call.timeouts == Timeouts(connect=1, load=2, first_token=3, between_tokens=4, total=50)
    assert (call.json, call.schema, call.think) == (False, None, False)
    assert (call.max_tokens, call.temperature, call.extras) == (None, None, {})


def test_a_pinned_model_is_asked() -> None:
    """The job's own model, not the first of the class."""
    assert asked(claimed(model="tiny-2")).call.model == "tiny-2"


def test_the_category_says_how_it_is_asked() -> None:
    """Its system text, temperature, tokens and thinking hold where the line says nothing."""
    call = asked(claimed("warm")).call
    assert call.messages == [{"role": "system", "content": "Task: warm. Be kind."}, USER]
    assert (call.temperature, call.max_tokens, call.think) == (0.5, 77, True)


def test_the_line_has_the_last_word() -> None:
    """What a line says of temperature, tokens and parameters is what is sent, zero included."""
    call = asked(claimed("warm", temperature=0, max_tokens=5, extras={"seed": 0})).call
    assert (call.temperature, call.max_tokens, call.extras) == (0.0, 5, {"seed": 0})


def test_both_system_texts_are_one_message() -> None:
    """The category's instructions come first, then the job's own."""
    call = asked(claimed("warm", system="Be brief.")).call
    assert call.messages[0] == {"role": "system", "content": "Task: warm. Be kind.\nBe brief."}
    assert asked(claimed(system="Be brief.")).call.messages[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_conversations_own_system_message_is_joined(role: str) -> None:
    """Models take one system message: the category's, the line's and the conversation's become one."""
    job = claimed("warm", messages=[{"role": role, "content": "Own."}, USER], system="Line.")
    assert asked(job).call.messages == [{"role": "system", "content": "Task: warm. Be kind.\nLine.\nOwn."}, USER]


def test_a_conversation_without_instructions_is_sent_as_it_is() -> None:
    """Nothing is added and nothing is changed."""
    messages = [{"role": "system", "content": "Own."}, USER, {"role": "assistant", "content": "Hi"}, USER]
    assert asked(claimed(messages=messages)).call.messages == messages


def test_a_system_message_of_parts_is_kept_beside_ours() -> None:
    """Parts are not flattened; our text goes before them."""
    own = {"role": "system", "content": [{"type": "text", "text": "Own."}]}
    assert asked(claimed("warm", messages=[own, USER])).call.messages == [
        {"role": "system", "content": "Task: warm. Be kind."},
        own,
        USER,
    ]


@pytest.mark.parametrize(
    ("category", "said", "json"),
    [
        ("plain", {}, False),
        ("plain", {"json": True}, True),
        ("plain", {"schema": {"type": "object"}}, True),
        ("form", {}, True),
        ("form", {"json": False}, False),
    ],
)
def test_json_is_asked_for(category: str, said: dict[str, Any], json: bool) -> None:
    """The line's word, else the category's; a schema asks for JSON too. It is asked coolly and in words."""
    what = asked(claimed(category, **said))
    assert what.json is what.call.json is json
    assert what.schema == what.call.schema == said.get("schema")
    system = what.call.messages[0]["content"] if what.call.messages[0]["role"] == "system" else ""
    assert (JSON_ONLY in system) is json
    assert what.call.temperature == (0.0 if json else None)


def test_json_keeps_the_task_and_drops_the_form() -> None:
    """`Answer in prose` and `one JSON value` cannot both hold."""
    call = asked(claimed("form")).call
    assert call.messages[0]["content"] == f"Task: form. {JSON_ONLY}"


@pytest.mark.parametrize(
    ("category", "said", "temperatures"),
    [
        ("plain", {}, [None, WARMER, 2 * WARMER]),
        ("warm", {}, [0.5, 0.5 + WARMER, 0.5 + 2 * WARMER]),
        ("form", {}, [0.0, WARMER, 2 * WARMER]),
        ("warm", {"temperature": 0.1}, [0.1, 0.1, 0.1]),
    ],
)
def test_a_retry_is_asked_more_warmly(category: str, said: dict[str, Any], temperatures: list[float | None]) -> None:
    """Asking the same way again gives the same; only a line that names a temperature gets just that."""
    found = [asked(claimed(category, attempts=n, **said)).call.temperature for n in range(3)]
    assert found == pytest.approx(temperatures)


@pytest.mark.parametrize(("said", "total"), [(None, 50), (20.5, 20.5), (1000, 50)])
def test_a_lines_timeout_only_shortens(said: float | None, total: float) -> None:
    """The class's time for a whole call is the most a line may have."""
    job = claimed() if said is None else claimed(timeout_s=said)
    assert asked(job).call.timeouts.total == total


def test_a_completion_has_a_prompt_and_no_messages() -> None:
    """OpenAI's /v1/completions is asked as such."""
    call = asked(claimed("warm", prompt="Once", kind="complete")).call
    assert (call.kind, call.prompt, call.messages) == ("complete", "Once", [])


@pytest.mark.parametrize(("given_", "inputs", "one"), [("a", ["a"], True), (["a", "b"], ["a", "b"], False)])
def test_an_embedding_has_inputs(given_: Any, inputs: list[str], one: bool) -> None:
    """One text or several; the answer has the shape of the question."""
    what = asked(claimed("vector", input=given_))
    assert (what.call.kind, what.call.inputs, what.inputs, what.one_vector) == ("embed", inputs, len(inputs), one)
    assert (what.call.messages, what.call.json) == ([], False)


@pytest.mark.parametrize(
    ("job", "fits"),
    [
        (claimed(prompt="x" * int(1000 * CHARS_PER_TOKEN)), True),
        (claimed(prompt="x" * int(1001 * CHARS_PER_TOKEN)), False),
        (claimed(prompt="x", system="x" * int(1001 * CHARS_PER_TOKEN)), False),
        (claimed(messages=[USER, {"role": "user", "content": "x" * 4000}]), False),
        (claimed(messages=[{"role": "user", "content": [{"type": "text", "text": "x" * 4000}]}]), False),
        (claimed("vector", input=["x" * 3000] * 50), True),
        (claimed("vector", input=["x", "x" * 4000]), False),
        pytest.param(claimed(model_class="wide", prompt="x" * 3500), True, id="the context of its models counts"),
        (claimed(model_class="wide", prompt="x" * 8000), False),
    ],
)
def test_a_prompt_that_no_model_holds_fails_before_it_is_sent(job: Any, fits: bool) -> None:
    """The error says how long it is and how much fits, and nothing of what it says."""
    if fits:
        asked(job)
        return
    with pytest.raises(Permanent, match="holds more than") as caught:
        asked(job)
    assert caught.value.code == "prompt_too_long"
    assert "xxx" not in str(caught.value)


@pytest.mark.parametrize(
    "job",
    [claimed(model="gone"), claimed(model_class="elsewhere"), claimed(model_class="gone")],
    ids=["model", "provider", "class"],
)
def test_what_this_worker_cannot_run_is_said(job: Any) -> None:
    """A configuration that changed under a job is an error of that job, with the provider's name."""
    with pytest.raises(Permanent, match=r"provider gpu .* class") as caught:
        asked(job)
    assert caught.value.code == "not_configured"


def test_a_category_that_is_gone_is_said() -> None:
    """A category taken out of the configuration does not break the worker."""
    job = claimed()
    with pytest.raises(Permanent, match="not configured"):
        ask(type(job)(**{n: getattr(job, n) for n in job.__slots__} | {"category": "gone"}), REGISTRY, ME.provider)


TEXT = st.text(min_size=1, max_size=30)
CONTENT = st.one_of(
    TEXT, st.none(), st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}), max_size=2)
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]), "content": CONTENT}
)
LINE = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, min_size=1, max_size=3)},
    optional={
        "system": TEXT,
        "json": st.booleans(),
        "max_tokens": st.integers(1, 100),
        "temperature": st.floats(0, 2),
        "timeout_s": st.floats(1, 100),
    },
)


@given(st.sampled_from(["plain", "warm", "form"]), LINE, st.integers(0, 9))
def test_every_line_that_is_accepted_can_be_asked(category: str, line: dict[str, Any], attempts: int) -> None:
    """What submit lets in, the worker can turn into a call whose first message is the only system text of ours."""
    job = parse_line(orjson.dumps(line), 1, REGISTRY, Said(category=category))
    if not isinstance(job, NewJob):
        return
    call = asked(claimed(category, attempts=attempts, **orjson.loads(job.body))).call
    assert call.messages[-1] == orjson.loads(job.body)["messages"][-1] or len(call.messages) == 1
    assert orjson.dumps(call.messages)
