"""What is accepted as an answer, and that nothing rejected is ever quoted."""

from __future__ import annotations

import json
import math
import socket
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import validation
from tasks.errors import BadOutput, UsageError
from tasks.labels import offered_labels
from tasks.validation import (
    check_json,
    check_text,
    check_vectors,
    clean,
    clean_json,
    compile_schema,
)

LABELLED = {
    "one of: bug, feature, question": ["bug", "feature", "question"],
    "Labels: a, b or c": ["a", "b", "c"],
    "classify as positive, negative or neutral": ["positive", "negative", "neutral"],
    "Choose from [a, b, c]": ["a", "b", "c"],
    "Is this mail spam? (spam/ham)": ["spam", "ham"],
    "Sentiment (positive/negative/neutral): great": ["positive", "negative", "neutral"],
    "either A or B": ["A", "B"],
    "Answer either yes or no.": ["yes", "no"],
    "Answer yes or no: is it raining?": ["yes", "no"],
    "Is this email spam or ham?": ["spam", "ham"],
    "Is this a bug or a feature?": ["bug", "feature"],
    "Labels:\n- bug: it broke\n- **feature**: new\n- question\n\nText: x, y": ["bug", "feature", "question"],
    "## Labels\n1. low\n2. high\n\nThe disk is full": ["low", "high"],
    "Labels: bug|feature|question\nText: crash": ["bug", "feature", "question"],
    "Classify the ticket as one of bug, feature, or question: it crashes": ["bug", "feature", "question"],
    "Classify into one of these categories: billing, terms and conditions, other. Text: a, b": [
        "billing",
        "terms and conditions",
        "other",
    ],
    'Classify the mood as "very good", "ok" or "bad": it was ok, nice': ["very good", "ok", "bad"],
    "Classify as bug, feature or question the following text": ["bug", "feature", "question"],
    "Classify as spam or ham, one word only. Buy now": ["spam", "ham"],
    "Pick one of the following options: ['x y', 'z']": ["x y", "z"],
    "Which category fits best: billing, bug, praise?": ["billing", "bug", "praise"],
    "One of P0, P1, P2, P3.": ["P0", "P1", "P2", "P3"],
    "Reply with one label: bug, feature or chore.": ["bug", "feature", "chore"],
    "Choose between red and blue.": ["red", "blue"],
}
UNLABELLED = [
    "",
    "this PR adds a new schema field",
    "one of the tests fails, the build breaks and CI is red",
    "He is one of us, and we are many",
    "Answer with one word, lowercase.",
    "Answer in English or German",
    "Reply with a word or a phrase",
    "Fix client (TCP/IP) handshake",
    "this PR adds support (read/write)",
    "It is either slow or broken.",
    "either we fix the bug or drop it",
    "Is this good or should I rewrite it?",
    "Classify this ticket: the app crashes on start, then login fails",
    "label this as soon as possible or later",
    "Give a label such as bug, feature, etc.",
    "classify by topic, e.g. sports, politics",
]
SCHEMA = compile_schema(
    {
        "type": "object",
        "properties": {"label": {"enum": ["bug", "feature"]}, "n/a": {"items": {"type": "integer"}}},
        "required": ["label"],
        "additionalProperties": {"type": "string"},
    }
)


def _code(answer: str, schema: validation.CompiledSchema | None = None) -> str:
    with pytest.raises(BadOutput) as caught:
        check_json(answer, schema)
    return caught.value.code


@pytest.mark.parametrize(("prompt", "labels"), LABELLED.items())
def test_offered_labels_are_read(prompt: str, labels: list[str]) -> None:
    """Labels offered in any of the usual ways are found, in their order."""
    assert offered_labels(prompt) == labels


@pytest.mark.parametrize("prompt", UNLABELLED)
def test_no_labels_are_made_up(prompt: str) -> None:
    """Where no labels are clearly offered, none are found."""
    assert offered_labels(prompt) == []


@given(st.text())
def test_any_prompt_can_be_read_for_labels(prompt: str) -> None:
    """No prompt makes the reading of labels fail, and one label alone is none."""
    assert len(offered_labels(prompt)) != 1


def test_huge_prompts_are_read_quickly() -> None:
    """Labels at either end of a prompt of megabytes are found within a moment of its own time."""
    filler = "one of (a, classify this either " * 100_000
    began = time.process_time()
    assert offered_labels(f"{filler}\nLabels: bug, feature") == ["bug", "feature"]
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ('{"a": [1, 2.5, null, true]}', {"a": [1, 2.5, None, True]}),
        ('\n```json\n{"a": 1}\n```\n', {"a": 1}),
        ("```\n[]\n```", []),
        ('"text"', "text"),
        ("3", 3),
        ('{"a": "```json\\n```"}', {"a": "```json\n```"}),
        ('{"a": "\\u0000\\ud800"}', {"a": "\\u0000\\ud800"}),
    ],
)
def test_json_is_json(answer: str, value: object) -> None:
    """Any JSON value passes, bare or in one fence, with what cannot be stored written out."""
    assert check_json(answer, None) == value


@pytest.mark.parametrize(
    "answer",
    [
        "Here is the JSON: {}",
        "{} Hope this helps!",
        "```json\n{}\n```\nDone.",
        "```json\n{}",
        "```python\n{}\n```",
        '{"a": 1, "a": 2}',
        '{"a": NaN}',
        "[Infinity]",
        "-Infinity",
        "1e999",
        "9" * 40,
        "9" * 5_000,
        "{'a': 1}",
        '{"a": 1,}',
        '"raw\nnewline"',
        "{}{}",
        "True",
        "[" * 100_000,
        "[" * 300 + "]" * 300,
        "{" * 3,
    ],
)
def test_what_is_not_json_is_bad_json(answer: str) -> None:
    """Prose around, duplicate keys, NaN, Infinity, numbers out of range and depth are bad_json."""
    assert _code(answer) == "bad_json"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_comes_back_as_it_was(value: Any) -> None:
    """Whatever is written as JSON is read as the same value, but for what clean_json changes."""
    assert check_json(json.dumps(value), None) == clean_json(value)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ('{"label": "swordfish"}', "at /label: enum"),
        ('{"n/a": ["swordfish"], "label": "bug"}', "at /n~1a/0: type"),
        ("{}", "at (root): required"),
        ("[]", "at (root): type"),
        ('{"label": "bug", "swordfish": 1}', "at /*: type"),
    ],
)
def test_a_mismatch_names_place_and_keyword(answer: str, message: str) -> None:
    """A schema mismatch tells where and which keyword, and shows neither values nor the model's keys."""
    with pytest.raises(BadOutput) as caught:
        check_json(answer, SCHEMA)
    assert (caught.value.code, str(caught.value)) == ("schema_mismatch", message)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_match_gives_the_value() -> None:
    """An answer that fits its schema comes back parsed."""
    assert check_json('{"label": "bug"}', SCHEMA) == {"label": "bug"}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:9/schema"},
        {"$ref": "https://example.org/schema"},
        {"$ref": "file:///etc/hostname"},
        {"$ref": "other.json"},
        {"$id": "http://example.org/a", "$ref": "b"},
        {"$dynamicRef": "http://127.0.0.1:9/schema#x"},
        {"$schema": "http://127.0.0.1:9/schema"},
        {"properties": {"a": {"items": {"$ref": "http://127.0.0.1:9/schema"}}}},
    ],
)
def test_no_reference_is_fetched(schema: dict[str, Any]) -> None:
    """A $ref to a URL or a file is refused at submit, and nobody is asked for it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        port = server.getsockname()[1]
        local = json.loads(json.dumps(schema).replace("127.0.0.1:9", f"127.0.0.1:{port}"))
        with pytest.raises(UsageError, match=r"\$ref or \$schema"):
            compile_schema(local)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "strin"}, "/type"),
        ({"properties": {"a": {"minimum": "x"}}}, "/properties/a/minimum"),
        ({"pattern": "("}, "/pattern"),
        ({"pattern": "((a{1000}){1000}){1000}"}, "/pattern"),
        ({"$ref": "#/$defs/none"}, r"\$ref"),
        (b"[]", "object"),
        (b"true", "object"),
        (b"{", "not JSON"),
        ({"enum": ["x" * 300_000]}, "bytes"),
        (b'{"enum": ["' + b"x" * 300_000 + b'"]}', "bytes"),
        (b" " * 600_000, "bytes"),
        (b'{"not":' * 400 + b"{}" + b"}" * 400, "deeply"),
        ({"const": object()}, "not JSON"),
    ],
)
def test_a_wrong_schema_is_the_persons_to_mend(schema: dict[str, Any] | bytes, reason: str) -> None:
    """A schema that is invalid, unending or too large is a UsageError that says why."""
    with pytest.raises(UsageError, match=reason):
        compile_schema(schema)


def test_a_schema_is_compiled_once() -> None:
    """The same schema, as an object or as bytes in another order, is one compiled schema."""
    first = compile_schema({"type": "object", "minProperties": 1})
    assert compile_schema(b'{ "minProperties": 1, "type": "object" }') is first


def test_a_schema_may_name_another_draft() -> None:
    """Draft 2020-12 is assumed, and $schema chooses another."""
    items: dict[str, Any] = {"items": [{"type": "string"}]}
    older = compile_schema({"$schema": "http://json-schema.org/draft-07/schema#", **items})
    assert _code("[1]", older) == "schema_mismatch"
    with pytest.raises(UsageError):
        compile_schema(items)


def test_a_hostile_pattern_costs_little() -> None:
    """A pattern made to backtrack without end fails the answer within a moment of its own time."""
    schema = compile_schema({"pattern": "^(?=a)(a+)+\\1$"})
    began = time.process_time()
    assert _code(json.dumps("a" * 5_000 + "!"), schema) == "schema_mismatch"
    assert time.process_time() - began < 2


def test_a_recursive_schema_meets_deep_json() -> None:
    """A schema that refers to itself reads an answer as deep as answers may be."""
    schema = compile_schema({"items": {"$ref": "#"}, "type": "array"})
    assert check_json("[" * 150 + "]" * 150, schema)


@pytest.mark.parametrize(
    ("vectors", "wanted", "dimensions"),
    [
        ([[1.0]], 2, None),
        ([], 1, None),
        ([[1.0], [1.0, 2.0]], 2, None),
        ([[1.0, 2.0]], 1, 3),
        ([[]], 1, None),
        ([[0.0, 0.0]], 1, None),
        ([[0.0, -0.0]], 1, None),
        ([[1.0, math.nan]], 1, None),
        ([[math.inf, 1.0]], 1, None),
        ([[math.inf, -math.inf]], 1, None),
        ([["1.0"]], 1, None),
        ([[None, 1.0]], 1, None),
        ([[True, 1.0]], 1, None),
        ([["a", 10**400]], 1, None),
        ([[10**400, 1]], 1, None),
        (["abc"], 1, None),
        ([None], 1, None),
    ],
)
def test_wrong_vectors(vectors: list[Any], wanted: int, dimensions: int | None) -> None:
    """Vectors of the wrong count or size, zero, or with anything but finite numbers are wrong_vectors."""
    with pytest.raises(BadOutput) as caught:
        check_vectors(vectors, wanted, dimensions)
    assert caught.value.code == "wrong_vectors"


def test_good_vectors_pass_quickly() -> None:
    """A thousand vectors of 1,024 numbers, tiny and integral ones among them, pass within a moment of its own time."""
    vectors: list[list[float]] = [[0.01, -1e-200, 0, *[0.02] * 1021]] * 1_000
    began = time.process_time()
    check_vectors(vectors, 1_000, 1_024)
    assert time.process_time() - began < 2
    check_vectors([], 0, None)


@pytest.mark.parametrize("output", ["", "  \n\t"])
def test_blank_text_is_an_empty_output(output: str) -> None:
    """Blank text is empty_output, whatever the check, and for JSON too."""
    with pytest.raises(BadOutput) as caught:
        check_text("summary", output, "")
    assert caught.value.code == "empty_output"
    assert _code(output) == "empty_output"


def test_a_failed_check_is_named() -> None:
    """A failed check gives its name and reason, and quotes neither answer nor prompt."""
    with pytest.raises(BadOutput) as caught:
        check_text("label", "swordfish", "one of: bug, feature")
    assert (caught.value.code, str(caught.value)) == ("check_failed", "label: not one of the labels offered")


def test_text_is_cleaned_and_trimmed() -> None:
    """NUL and lone surrogates are written out, trailing blanks go, leading ones stay."""
    assert check_text("not_empty", "  a\x00b\ud83d \n", "") == "  a\\u0000b\\ud83d"


@given(st.text(st.characters(exclude_categories=[])))
def test_clean_text_can_be_stored(text: str) -> None:
    """Cleaned text is UTF-8 without NUL, and text that was so already is unchanged."""
    cleaned = clean(text)
    assert b"\x00" not in cleaned.encode()
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize("letter", ["x", "€", "\ud800"])
def test_too_large_an_output(letter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs over the bound, counted in UTF-8 bytes, are output_too_large; those at it pass."""
    size = len(letter.encode(errors="surrogatepass"))
    monkeypatch.setattr(validation, "MAX_OUTPUT_BYTES", 30 * size)
    assert check_text("not_empty", letter * 30, "")
    with pytest.raises(BadOutput) as caught:
        check_text("not_empty", letter * 31, "")
    assert caught.value.code == "output_too_large"
    assert _code(f'"{letter * 30}"') == "output_too_large"
