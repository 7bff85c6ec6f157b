"""The simulator's JSON obeys the schemas that people write."""

# ruff: noqa: E501  (one schema a line)

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.simulator.json_from_schema import instance, offending
from workers.simulator.pattern_text import matching

NODE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                   "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
    "required": ["name", "next", "children"],
    "additionalProperties": False,
}  # fmt: skip

SCHEMAS: dict[str, dict[str, Any]] = {
    "object": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a"]},
    "required without property": {"type": "object", "required": ["x"], "additionalProperties": {"type": "integer"}},
    "least properties": {"type": "object", "minProperties": 3, "additionalProperties": {"type": "boolean"}},
    "most properties": {"type": "object", "maxProperties": 1, "properties": {"a": {}, "b": {}}, "required": ["b"]},
    "enum": {"enum": ["red", 7, None]},
    "const": {"const": {"deep": [1]}},
    "integer bounds": {"type": "integer", "minimum": -5, "maximum": -2},
    "exclusive bounds": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
    "number bounds": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    "only a maximum": {"type": "number", "maximum": -10},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 10},
    "lengths": {"type": "string", "minLength": 40, "maxLength": 45},
    "short": {"type": "string", "maxLength": 2},
    "items": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
    "unique": {"type": "array", "items": {"type": "string", "maxLength": 4}, "minItems": 5, "uniqueItems": True},
    "unique enum": {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 3, "uniqueItems": True},
    "prefix": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False, "minItems": 2},
    "nullable type": {"type": ["null", "integer"], "minimum": 3},
    "any of": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"k": {"const": 1}}, "required": ["k"]}]},
    "one of": {"oneOf": [{"type": "integer", "minimum": 5}, {"type": "string"}]},
    "all of": {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                         {"properties": {"b": {"type": "string"}}, "required": ["b"]}]},
    "definitions": {"definitions": {"x": {"type": "integer"}}, "type": "object",
                    "properties": {"v": {"$ref": "#/definitions/x"}}, "required": ["v"]},
    "recursive": {"$defs": {"node": NODE}, "$ref": "#/$defs/node"},
    "no type": {"properties": {"v": {"minimum": 3}}, "required": ["v"]},
    "empty": {},
    "false property": {"type": "object", "properties": {"no": False, "yes": True}},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("seed", range(5))
def test_instance_obeys(name: str, seed: int) -> None:
    """A value made for a schema passes that schema, whatever the seed."""
    jsonschema_rs.validator_for(SCHEMAS[name]).validate(instance(SCHEMAS[name], seed))


@pytest.mark.parametrize("form", ["date", "date-time", "time", "email", "uuid", "uri", "ipv4", "ipv6", "hostname"])
def test_formats(form: str) -> None:
    """A string of a named format is of that format."""
    schema = {"type": "string", "format": form}
    jsonschema_rs.Draft202012Validator(schema, validate_formats=True).validate(instance(schema, 1))


PATTERNS = (
    r"^[A-Z]{3}-\d{4}$", r"^\d{4}-\d{2}-\d{2}$", r"^(red|green)$", r"[^a-z]+", r"^v?\d+\.\d+\.\d+$",
    r"^\w+@\w+\.com$", r"^#[0-9a-fA-F]{6}$", r"^.{3,5}$", r"^\s*$", r"a*b+c?",
)  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern: str) -> None:
    """A common regular expression gets a text that it matches."""
    assert re.search(pattern, matching(pattern))


def test_a_pattern_that_is_no_expression_still_gets_a_text() -> None:
    """A broken pattern is no reason to fail."""
    assert matching("[") == "simulated"


def test_pattern_with_lengths() -> None:
    """A pattern's repetitions are stretched to the shortest length allowed."""
    text = matching("^[a-z]+$", 12, 20)
    assert re.fullmatch("[a-z]{12,20}", text)


def test_no_schema_still_gives_json() -> None:
    """What is no schema gives the plain simulated object."""
    assert instance(None, 1) == {"simulated": True}


_LEAF = st.sampled_from([
    {"type": "string"}, {"type": "integer", "minimum": 2}, {"type": "boolean"}, {"enum": ["a", "b"]}, {"type": "null"},
    {"type": ["string", "null"], "maxLength": 3},
])  # fmt: skip


def _grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = st.dictionaries(st.sampled_from("abcd"), inner, max_size=3).map(
        lambda p: {"type": "object", "properties": p, "required": sorted(p), "additionalProperties": False}
    )
    arrays = st.tuples(inner, st.integers(0, 3)).map(lambda t: {"type": "array", "items": t[0], "minItems": t[1]})
    return objects | arrays | st.lists(inner, min_size=1, max_size=3).map(lambda b: {"anyOf": b})


@settings(deadline=None)
@given(st.recursive(_LEAF, _grown, max_leaves=8), st.integers(0, 1 << 48))
def test_any_composition_is_obeyed(schema: dict[str, Any], seed: int) -> None:
    """Objects, arrays and choices nested in any way are obeyed, and the same seed gives the same value."""
    made = instance(schema, seed)
    jsonschema_rs.validator_for(schema).validate(made)
    assert made == instance(schema, seed)


@pytest.mark.parametrize("name", ["object", "all of", "recursive", "most properties", "false property"])
def test_offending_is_rejected(name: str) -> None:
    """The value of fault wrongschema does not pass an object's schema."""
    assert not jsonschema_rs.validator_for(SCHEMAS[name]).is_valid(offending(SCHEMAS[name]))
