"""A job line becomes a job or every fault it has, and no fault ever shows what was asked."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks.config import parse
from tasks.errors import LineFault
from tasks.lines import MOST_FIELDS, MOST_TEXTS
from tasks.registry import nearest
from tasks.routing import Said
from tasks.schemas import MAX_DEPTH, MOST_FAULTS, MOST_NAME, PREFIX_CHARS, NewJob, parse_line, prompt_text

REGISTRY = parse(
    """
providers:
  - {name: one, kind: ollama, url: "http://127.0.0.1:1"}
  - {name: two, kind: ollama, url: "http://127.0.0.1:2"}
classes:
  small: {serve: [{provider: one, model: tiny}, {provider: two, model: tiny}, {provider: two, model: half}]}
  coder: {serve: [{provider: one, model: coder-1}]}
  embed: {serve: [{provider: one, model: bge}]}
""",
    "offload.yaml",
)
CHAT = [{"role": "user", "content": "Hello"}]


def line(**fields: Any) -> dict[str, Any]:
    return {"category": "summarize", "prompt": "Some text."} | fields


def openai(body: dict[str, Any] | None = None, url: str = "/v1/chat/completions", **fields: Any) -> dict[str, Any]:
    body = {"model": "auto", "messages": CHAT} if body is None else body
    return {"custom_id": "c1", "method": "POST", "url": url, "body": body} | fields


def read(data: Any, number: int = 7, category: str | None = None) -> NewJob | list[LineFault]:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return parse_line(raw, number, REGISTRY, Said(category=category))


def job(data: Any, **more: Any) -> NewJob:
    found = read(data, **more)
    assert isinstance(found, NewJob), found
    return found


def faults(data: Any, **more: Any) -> dict[str, str]:
    found = read(data, **more)
    assert isinstance(found, list), found
    assert all(fault.line == 7 for fault in found)
    return {fault.field: fault.reason for fault in found}


def body(data: Any, **more: Any) -> dict[str, Any]:
    return dict(orjson.loads(job(data, **more).body))


def test_a_line_as_short_as_can_be() -> None:
    """A category and a prompt are a job; its id is the line's number, its class the category's."""
    found = job({"category": "code", "prompt": "x"})
    assert (found.line, found.line_id, found.category, found.model_class) == (7, "7", "code", "coder")
    assert (found.model, found.body, found.prefix) == (None, b'{"prompt":"x"}', None)


def test_every_field_reaches_the_body() -> None:
    """What a line says of the request is stored as it was said; what it says of the job is not."""
    said = {
        "system": "Be brief.",
        "json": True,
        "schema": {"type": "object"},
        "max_tokens": 5,
        "temperature": 0.5,
        "timeout_s": 9.0,
        "metadata": {"a": [1, None, "x"]},
    }
    made = job(line(id="mine", model="tiny", **said))
    assert (made.line_id, made.model, made.model_class) == ("mine", "tiny", "small")
    assert orjson.loads(made.body) == {"prompt": "Some text."} | said


def test_nulls_say_nothing() -> None:
    """A field that is null is a field that is not there."""
    nulls = dict.fromkeys(["id", "messages", "input", "system", "json", "schema", "model", "max_tokens", "metadata"])
    assert job(line(**nulls)) == job(line())


def test_messages_keep_their_shape() -> None:
    """A conversation is stored with its roles, its parts and its tool calls."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "u"}], "name": "bob"},
        {"role": "assistant", "tool_calls": [{"id": "t", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "r", "tool_call_id": "t"},
    ]
    made = body({"category": "chat", "messages": messages})
    assert made == {"messages": messages}
    assert prompt_text(made) == "s\nu\n\nr"


@pytest.mark.parametrize("given_", [{"input": "a"}, {"input": ["a", "b"]}, {"prompt": "a"}])
def test_embeddings_take_input_and_a_prompt_is_one(given_: dict[str, Any]) -> None:
    """An embedding's text may be called prompt; it is stored as input."""
    made = job({"category": "embed"} | given_)
    assert made.model_class == "embed"
    assert orjson.loads(made.body) == {"input": given_.get("input", "a")}


@pytest.mark.parametrize(
    ("model", "pinned", "model_class"),
    [("tiny", "tiny", "small"), ("coder-1", "coder-1", "coder"), ("coder", None, "coder"), ("small", None, "small")],
)
def test_a_model_or_a_class_may_be_named(model: str, pinned: str | None, model_class: str) -> None:
    """A model's name pins it and picks its class; a class's name only picks the class."""
    made = job(line(model=model))
    assert (made.model, made.model_class) == (pinned, model_class)


def test_a_category_given_outside_is_for_lines_that_name_none() -> None:
    """The line's own category counts first."""
    assert job({"prompt": "x"}, category="code").category == "code"
    assert job({"prompt": "x", "category": "plan"}, category="code").category == "plan"
    assert job(openai(), category="code").category == "code"


FAULTS: dict[str, tuple[Any, dict[str, str]]] = {
    "no category": ({"prompt": "x"}, {"category": "Field required"}),
    "no text": ({"category": "code"}, {"": "exactly one of prompt, messages, input is needed (given: none)"}),
    "two texts": (line(messages=CHAT), {"": "(given: prompt, messages)"}),
    "empty prompt": (line(prompt=""), {"prompt": "at least 1 character"}),
    "a blank prompt": (line(prompt=" \n"), {"prompt": "is blank"}),
    "a blank input": ({"category": "embed", "input": ["a", " "]}, {"input": "is blank"}),
    "no messages": ({"category": "chat", "messages": []}, {"messages": "at least 1 item"}),
    "a role there is not": (
        {"category": "chat", "messages": [{"role": "robot", "content": "x"}]},
        {"messages.0.role": "Input should be 'system'"},
    ),
    "an unknown category": (line(category="sumarize"), {"category": "'sumarize' (did you mean 'summarize'?)"}),
    "an unknown category beside an unknown field": (
        line(category="sumarize", temprature=1),
        {"category": "'sumarize' (did you mean 'summarize'?)", "temprature": "did you mean 'temperature'?"},
    ),
    "an unknown category of a line with nothing to ask": (
        b'{"category": "sumarize"}',
        {"category": "'sumarize' (did you mean 'summarize'?)", "": "exactly one of prompt, messages, input"},
    ),
    "an unknown model": (line(model="tinny"), {"model": "model 'tinny': is not configured (did you mean 'tiny'?)"}),
    "a model not everywhere": (line(model="half"), {"model": "model 'half': no class is served by it whole"}),
    "a misspelt field": (line(max_token=5), {"max_token": "unknown field (did you mean 'max_tokens'?)"}),
    "our word for json": (line(json_=True), {"json_": "unknown field (did you mean 'json'?)"}),
    "a field nothing is near": (line(zzz=1), {"zzz": "unknown field (known: app, category, for, id, input, json"}),
    "a misspelt field of a message": (
        {"category": "chat", "messages": [{"role": "user", "contnt": "x"}]},
        {"messages.0.contnt": "(did you mean 'content'?)"},
    ),
    "an embedding of messages": (
        {"category": "embed", "messages": CHAT},
        {"messages": "an embedding takes input"},
    ),
    "input without embedding": (
        {"category": "code", "input": "x"},
        {"input": "category code takes prompt or messages"},
    ),
    "an embedding as json": ({"category": "embed", "input": "x", "json": True}, {"json": "an embedding has no JSON"}),
    "empty inputs": ({"category": "embed", "input": []}, {"input": ""}),
    "an empty input": ({"category": "embed", "input": ["a", ""]}, {"input": "", "input.1": "at least 1 character"}),
    "a schema and no json": (line(json=False, schema={}), {"json": "json cannot be false"}),
    "a schema that is none": (line(schema={"type": "nope"}), {"schema": "at /type"}),
    "a schema from elsewhere": (line(schema={"$ref": "http://x/y"}), {"schema": "a $ref"}),
    "a schema of no object": (line(schema=[1]), {"schema": "valid dictionary"}),
    "no tokens": (line(max_tokens=0), {"max_tokens": "greater than or equal to 1"}),
    "huge tokens": (line(max_tokens=10**30), {"max_tokens": ""}),
    "too hot": (line(temperature=2.1), {"temperature": "less than or equal to 2"}),
    "no time": (line(timeout_s=0), {"timeout_s": "greater than 0"}),
    "a long id": (line(id="x" * 257), {"id": "at most 256 characters"}),
    "an empty id": (line(id=""), {"id": "at least 1 character"}),
    "an id that is no string": (line(id=5), {"id": "valid string"}),
    "metadata of no object": (line(metadata="x"), {"metadata": "valid dictionary"}),
    "many faults": (line(max_tokens=0, temperature=9, zzz=1), {"max_tokens": "", "temperature": "", "zzz": ""}),
    "no id, OpenAI": (
        {"method": "POST", "url": "/v1/chat/completions", "body": {"model": "auto", "messages": CHAT}},
        {"custom_id": "Field required"},
    ),
    "a misspelt field, OpenAI": (openai(metod="POST"), {"metod": "(did you mean 'method'?)"}),
    "a misspelt field of its body": (
        openai({"model": "auto", "messages": CHAT, "max_token": 1}),
        {"body.max_token": "(did you mean 'max_tokens'?)"},
    ),
    "a misspelt field of its message": (
        openai({"model": "auto", "messages": [{"role": "user", "contnt": "x"}]}),
        {"body.messages.0.contnt": "(did you mean 'content'?)"},
    ),
    "another url": (openai(url="/v1/images"), {"url": "Input should be '/v1/chat/completions'"}),
    "another method": (openai(method="GET"), {"method": "Input should be 'POST'"}),
    "a stream": (openai({"model": "auto", "messages": CHAT, "stream": True}), {"body.stream": "should be False"}),
    "a schema that is not there": (
        openai({"model": "auto", "messages": CHAT, "response_format": {"type": "json_schema"}}),
        {"body.response_format": "json_schema goes with type json_schema"},
    ),
    "a schema without one inside": (
        openai({"model": "auto", "messages": CHAT, "response_format": {"type": "json_schema", "json_schema": {}}}),
        {"body.response_format.json_schema.schema": "Field required"},
    ),
    "several answers": (openai({"model": "auto", "messages": CHAT, "n": 2}), {"body.n": "should be 1"}),
    "no model": (openai({"messages": CHAT}), {"body.model": "Field required"}),
    "tokens as input": (
        openai({"model": "auto", "input": [1, 2]}, "/v1/embeddings"),
        {"body.input": "made of tokens"},
    ),
    "an image elsewhere": (
        openai(
            {
                "model": "auto",
                "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}],
            }
        ),
        {"messages.0.content": "data: URL"},
    ),
    "a conversation to complete": (
        openai({"model": "auto", "messages": CHAT}, "/v1/completions"),
        {"messages": "/v1/completions takes prompt"},
    ),
    "an unknown category, OpenAI": (
        openai({"model": "category:sumarize", "messages": CHAT}),
        {"category": "(did you mean 'summarize'?)"},
    ),
    "not JSON": (b'{"category": "code", ', {"": "is not JSON (column "}),
    "nothing": (b"", {"": "is not JSON"}),
    "no object": (b"[1]", {"": "is not a JSON object"}),
    "NaN": (b'{"temperature": NaN}', {"": "is not JSON"}),
    "a number without end": (b'{"temperature": 1e999}', {"": "is not JSON"}),
    "not UTF-8": (b'{"category": "code", "prompt": "\xff"}', {"": "is not UTF-8"}),
    "UTF-16": ('{"category": "code"}'.encode("utf-16"), {"": ""}),
    "a byte order mark": (b'\xef\xbb\xbf{"category": "code"}', {"": "byte order mark"}),
    "a NUL byte": (b'{"category": "code", "prompt": "a\0b"}', {"": "contains a NUL byte"}),
    "a NUL character": (b'{"category": "code", "prompt": "a\\u0000b"}', {"": "contains a NUL character"}),
    "a NUL character in a key": (b'{"metadata": {"a\\u0000": 1}}', {"": "contains a NUL character"}),
    "a NUL character in a list": (b'{"metadata": {"a": ["\\u0000"]}}', {"": "contains a NUL character"}),
    "half a surrogate pair": (b'{"category": "code", "prompt": "\\ud800"}', {"": "is not JSON"}),
    "the other half": (b'{"category": "code", "prompt": "\\udc00"}', {"": "is not JSON"}),
}


@pytest.mark.parametrize(("data", "wanted"), FAULTS.values(), ids=FAULTS)
def test_a_fault_names_its_field_and_the_reason(data: Any, wanted: dict[str, str]) -> None:
    """Every fault of a line is told at once, each with its field and, for names, the nearest one."""
    found = faults(data)
    assert set(found) == set(wanted)
    for field, reason in wanted.items():
        assert reason in found[field]


MANY = 5_000
ONES, UNKNOWN = [1] * MANY, {f"k{i}": 1 for i in range(MANY)}
MUCH: dict[str, tuple[Any, set[str]]] = {
    "messages": ({"category": "chat", "messages": ONES}, {"messages.0"}),
    "parts": (
        {"category": "chat", "messages": [{"role": "user", "content": ONES}]},
        {"messages.0.content", "messages.0.content.0"},
    ),
    "tool calls": (
        {"category": "chat", "messages": [{"role": "assistant", "tool_calls": ONES}]},
        {"messages.0.tool_calls.0"},
    ),
    "paths": (line(touches=ONES), {"touches.0"}),
    "texts": ({"category": "embed", "input": ONES}, {"input"}),
    "as many texts as there may be": ({"category": "embed", "input": [1] * MOST_TEXTS}, {""}),
    "fields": (line(**UNKNOWN), {""}),
    "fields of a message": ({"category": "chat", "messages": [UNKNOWN]}, {"messages.0"}),
    "messages, OpenAI": (openai({"model": "auto", "messages": ONES}), {"body.messages.0"}),
    "texts, OpenAI": (openai({"model": "auto", "input": ONES}, "/v1/embeddings"), {"body.input"}),
    "items, OpenAI": (
        openai({"model": "auto", "input": [{"role": 1}] * MANY}, "/v1/responses"),
        {"body.input.0.role", "body.input.0.content"},
    ),
    "parts of an item, OpenAI": (
        openai({"model": "auto", "input": [{"role": "user", "content": ONES}]}, "/v1/responses"),
        {"body.input.0.content", "body.input.0.content.0"},
    ),
    "stops, OpenAI": (openai({"model": "auto", "messages": CHAT, "stop": ONES}), {"body.stop", "body.stop.0"}),
    "paths, OpenAI": (
        openai({"model": "auto", "messages": CHAT, "metadata": {"offload": {"touches": ONES}}}),
        {"body.metadata.offload.touches.0"},
    ),
    "fields of a body, OpenAI": (openai({"model": "auto", "messages": CHAT, **UNKNOWN}), {"body"}),
}


AT = "http://169.254.0.1/x"
FETCHED: dict[str, tuple[dict[str, Any], str]] = {
    "an image": ({"type": "image_url", "image_url": {"url": AT}}, "data: URL"),
    "an image, as a text": ({"type": "image_url", "image_url": AT}, "data: URL"),
    "an image on a disk": ({"type": "image_url", "image_url": {"url": "/etc/passwd"}}, "data: URL"),
    "an image in other letters": ({"type": "image_url", "image_url": {"url": " HTTP://a"}}, "data: URL"),
    "an image with more": (
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "uri": AT}},
        "url and detail, nothing else",
    ),
    "an input image": ({"type": "input_image", "image_url": AT}, "a part of type input_image is not taken"),
    "a video": ({"type": "video_url", "video_url": {"url": AT}}, "a part of type video_url is not taken"),
    "a sound": ({"type": "audio_url", "audio_url": {"url": AT}}, "a part of type audio_url is not taken"),
    "an image without a type": ({"image_url": AT}, "a part is not taken"),
    "an image in a text": ({"type": "text", "text": "x", "image_url": AT}, "type and text, nothing else"),
    "a sound elsewhere": ({"type": "input_audio", "input_audio": {"data": AT, "format": "wav"}}, "is base64"),
    "a file elsewhere": ({"type": "file", "file": {"file_data": AT}}, "is base64"),
    "a file of the server's": ({"type": "file", "file": {"file_id": "file-1"}}, "file_data and filename, nothing else"),
    "a text that is none": ({"type": "text", "text": {"url": AT}}, "has a text"),
    "a type that is none": ({"type": ["image_url"], "image_url": AT}, "a part is not taken"),
    "a type that is a prompt": ({"type": "My secret prompt", "image_url": AT}, "a part is not taken"),
}


@pytest.mark.parametrize(("part", "reason"), FETCHED.values(), ids=FETCHED)
def test_nothing_that_a_server_would_fetch(part: dict[str, Any], reason: str) -> None:
    """A part of a content names no address: the model server would ask it, from inside the network."""
    text = {"type": "text", "text": "x"}
    found = faults({"category": "chat", "messages": [*CHAT, {"role": "user", "content": [text, part]}]})
    assert set(found) == {"messages.1.content"}
    assert reason in found["messages.1.content"]
    assert "secret" not in found["messages.1.content"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}},
        {"type": "refusal", "refusal": "no"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
        {"type": "image_url", "image_url": "data:image/png;base64,AA=="},
        {"type": "input_audio", "input_audio": {"data": "//uQ", "format": "mp3"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA==", "filename": "a.pdf"}},
    ],
)
def test_parts_with_their_data(part: dict[str, Any]) -> None:
    """What brings its data along is taken as it is."""
    messages = [{"role": "user", "content": [part]}]
    assert body({"category": "chat", "messages": messages})["messages"] == messages


@pytest.mark.parametrize(("data", "fields"), MUCH.values(), ids=MUCH)
def test_many_mistakes_are_few_faults(data: Any, fields: set[str]) -> None:
    """A line that is wrong thousands of times is told so once: its faults cost no more than the line itself."""
    assert set(faults(data)) == fields


def test_as_many_faults_as_are_told() -> None:
    """Faults that only a look at each message finds are told up to a number."""
    image = {"role": "user", "content": [{"type": "image_url", "image_url": "http://x/y"}]}
    found = read({"category": "chat", "messages": [image] * MANY})
    assert isinstance(found, list)
    assert len(found) == MOST_FAULTS


def test_as_many_fields_as_there_may_be() -> None:
    """Notes of a producer's own are no fields, and unknown fields are each told while they are few."""
    kept = body(openai({"model": "auto", "messages": CHAT, "metadata": {f"k{i}": "x" for i in range(2 * MOST_FIELDS)}}))
    assert len(kept["metadata"]) == 2 * MOST_FIELDS
    assert len(faults(line(**dict.fromkeys(list(UNKNOWN)[: MOST_FIELDS - 2], 1)))) == MOST_FIELDS - 2


def test_long_names() -> None:
    """A name as long as a line is shortened where it is shown, and compared with others only as far as they go."""
    (shown,) = faults(line(**{"x" * 100_000: 1}))
    assert shown == "x" * MOST_NAME
    word = "categor" + "y" * 1_000_000
    tracemalloc.start()
    try:
        assert nearest(word, ["category"]).startswith(" (known: category")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_what_only_looks_like_nul_is_text() -> None:
    """A backslash before u0000 is text about NUL, not NUL."""
    assert body(b'{"category": "code", "prompt": "a \\\\u0000 b"}') == {"prompt": "a \\u0000 b"}


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 300, 600, 1500, 100_000])
@pytest.mark.parametrize(("open_", "close"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("leaf", [b"1", b'"\\u0000"'])
def test_deep_nesting_is_a_fault(levels: int, open_: bytes, close: bytes, leaf: bytes) -> None:
    """However deep a line nests, it is one fault and no crash."""
    deep = open_ * levels + leaf + close * levels
    assert set(faults(b'{"category": "code", "prompt": "x", "metadata": {"a": ' + deep + b"}}")) == {""}


def test_nesting_that_is_deep_but_fits_is_kept() -> None:
    """What is accepted can be written, read and sent again."""
    deep: Any = 1
    for _ in range(MAX_DEPTH - 2):
        deep = [deep]
    assert body(line(metadata={"a": deep}))["metadata"] == {"a": deep}
    assert body(line(prompt="[{" * 500))["prompt"] == "[{" * 500


@pytest.mark.parametrize(
    ("data", "category", "stored"),
    [
        (openai(), "chat", {"messages": CHAT}),
        (openai({"model": "category:plan", "messages": CHAT}), "plan", {"messages": CHAT}),
        (openai({"model": "auto", "input": "x"}, "/v1/embeddings"), "embed", {"input": "x"}),
        (
            openai({"model": "auto", "prompt": "x"}, "/v1/completions"),
            "chat",
            {"prompt": "x", "kind": "complete"},
        ),
        (
            openai({"model": "auto", "messages": CHAT, "max_tokens": 3, "max_completion_tokens": 5}),
            "chat",
            {"messages": CHAT, "max_tokens": 5},
        ),
        (
            openai({"model": "auto", "messages": CHAT, "response_format": {"type": "json_object"}}),
            "chat",
            {"messages": CHAT, "json": True},
        ),
        (
            openai(
                {
                    "model": "auto",
                    "messages": CHAT,
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "n", "schema": {"type": "array"}},
                    },
                }
            ),
            "chat",
            {"messages": CHAT, "json": True, "schema": {"type": "array"}},
        ),
        (
            openai({"model": "auto", "messages": CHAT, "response_format": {"type": "text"}, "user": "u", "n": 1}),
            "chat",
            {"messages": CHAT},
        ),
        (
            openai({"model": "auto", "messages": CHAT, "tools": None, "logprobs": None, "max_tokens": None}),
            "chat",
            {"messages": CHAT},
        ),
        (
            openai({"model": "auto", "messages": CHAT, "logprobs": False, "service_tier": "auto"}),
            "chat",
            {"messages": CHAT},
        ),
        (
            openai({"model": "auto", "prompt": ["Hello."]}, url="/v1/completions"),
            "chat",
            {"prompt": "Hello.", "kind": "complete"},
        ),
        (
            openai(
                {
                    "model": "auto",
                    "messages": CHAT,
                    "top_p": 0.5,
                    "seed": 0,
                    "stop": ["\n"],
                    "frequency_penalty": 1,
                    "presence_penalty": -1,
                    "temperature": 0,
                }
            ),
            "chat",
            {
                "messages": CHAT,
                "temperature": 0.0,
                "extras": {
                    "top_p": 0.5,
                    "seed": 0,
                    "stop": ["\n"],
                    "frequency_penalty": 1.0,
                    "presence_penalty": -1.0,
                },
            },
        ),
    ],
)
def test_openai_lines(data: dict[str, Any], category: str, stored: dict[str, Any]) -> None:
    """A line of an OpenAI batch file becomes the same job as one of ours, under its custom_id."""
    made = job(data)
    assert (made.line_id, made.category) == ("c1", category)
    assert orjson.loads(made.body) == stored


def test_an_openai_model_is_pinned() -> None:
    """A model that is configured is used; `auto` and a category's name pin none."""
    assert job(openai({"model": "tiny", "messages": CHAT})).model == "tiny"
    assert job(openai()).model is None
    assert "is not configured" in faults(openai({"model": "gpt-5", "messages": CHAT}))["model"]


def test_prompts_that_begin_alike_share_a_prefix() -> None:
    """The first characters of system text and prompt decide; short prompts have no prefix worth keeping."""
    shared = "x" * PREFIX_CHARS
    first, second = job(line(prompt=shared + "a")), job(line(prompt=shared + "b"))
    assert first.prefix == second.prefix is not None
    assert job(line(system="s", prompt=shared)).prefix not in (first.prefix, None)
    assert job(line(system=shared, prompt="a")).prefix == first.prefix
    assert job(line(prompt=shared[1:])).prefix is None


CANARY = "c4n4ry"
canaries = st.builds(lambda before, after: before + CANARY + after, st.text(max_size=3), st.text(max_size=3))
junk = st.one_of(canaries, st.none(), st.integers(), st.floats(), st.booleans(), st.lists(canaries, max_size=2))
content = st.one_of(junk, st.dictionaries(st.sampled_from(["text", "type", "$ref", "enum", "a"]), junk, max_size=3))
message = st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls", "tool_call_id", "x"]), content)
OURS = ["id", "prompt", "messages", "input", "system", "json", "schema", "max_tokens", "temperature", "timeout_s"]
lines_ = st.dictionaries(
    st.sampled_from([*OURS, "metadata", "zzz", "custom_id", "method", "url", "body"]),
    st.one_of(content, st.lists(message, max_size=2), st.dictionaries(st.sampled_from([*OURS, "stop", "n"]), content)),
)


@settings(deadline=None)  # it is not about time
@given(lines_, st.sampled_from(["summarize", "embed", "nothing"]))
@example({"schema": {"$ref": CANARY}, "prompt": CANARY}, "summarize")
@example({"schema": {"enum": CANARY}, "prompt": CANARY}, "summarize")
@example({"schema": {"pattern": f"({CANARY}"}, "prompt": CANARY}, "summarize")
@example({"schema": {"$schema": CANARY}, "prompt": CANARY}, "summarize")
def test_no_fault_shows_what_was_asked(data: dict[str, Any], category: str) -> None:
    """Whatever is wrong and wherever the text stands, it is in no message."""
    found = read(data, category=category)
    if isinstance(found, list):
        assert CANARY not in "\n".join(map(str, found))


@given(st.binary(max_size=60))
def test_any_bytes_are_a_job_or_faults(raw: bytes) -> None:
    """No line breaks the reader."""
    assert isinstance(read(raw), NewJob | list)


@given(st.recursive(st.none() | st.booleans() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_json_is_a_job_or_faults(data: Any) -> None:
    """No JSON breaks the reader."""
    assert isinstance(read(data), NewJob | list)
