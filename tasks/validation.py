"""Is this output acceptable?  What is not raises BadOutput with a code of its own:

    empty_output       blank text
    output_too_large   over MAX_OUTPUT_BYTES
    check_failed       the category's named check (checks.py)
    bad_json           not one JSON value, bare or in one fence
    schema_mismatch    JSON, but not as the job's schema wants it
    wrong_vectors      embeddings that cannot be the ones asked for

Messages name the place and the rule, never what stood there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import jsonschema_rs
import orjson

from tasks.checks import CHECKS
from tasks.errors import BadOutput, UsageError

#: UTF-8 bytes of one job's output
MAX_OUTPUT_BYTES = 16 * 1024 * 1024
#: bytes of a job's schema in canonical form
MAX_SCHEMA_BYTES = 256 * 1024
#: levels of nesting in an answer; orjson writes no more than 254
_MAX_DEPTH = 200
#: schemas kept compiled; each may be of MAX_SCHEMA_BYTES
_KEPT_SCHEMAS = 128
#: a schema's pattern may neither backtrack nor grow without bound (ReDoS): steps and bytes
_PATTERNS = jsonschema_rs.FancyRegexOptions(backtrack_limit=10_000, size_limit=1024 * 1024)

_FENCE = re.compile(r"```[ \t]*(?:json)?[ \t]*\r?\n(.*)```", re.IGNORECASE | re.DOTALL)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    """A JSON Schema ready for use; `names` are the property names it speaks of."""

    canonical: bytes
    validator: jsonschema_rs.Validator
    names: frozenset[str]


def check_text(check: str, output: str, prompt: str) -> str:
    """The output, cleaned and without trailing whitespace, if the check of this name finds no fault in it."""
    _check_size(output)
    text = clean(output).rstrip()
    if not text.strip():
        raise BadOutput("empty_output", "the answer is empty")
    if reason := CHECKS[check](text, prompt):
        raise BadOutput("check_failed", f"{check}: {reason}")
    return text


def _check_size(output: str) -> None:
    if len(output) * 4 <= MAX_OUTPUT_BYTES:
        return
    if len(output) > MAX_OUTPUT_BYTES or len(output.encode(errors="surrogatepass")) > MAX_OUTPUT_BYTES:
        raise BadOutput("output_too_large", f"the answer is over {MAX_OUTPUT_BYTES} bytes")


def clean(text: str) -> str:
    r"""`text` with NUL and lone surrogates written out as `\u0000`: PostgreSQL and UTF-8 take neither."""
    return _UNSTORABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def clean_row(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of a row with every text cleaned: a server says its model's name, say."""
    return {name: clean(value) if isinstance(value, str) else value for name, value in columns.items()}


def clean_json(value: Any, *, depth: int = _MAX_DEPTH) -> Any:
    """A JSON value with every string and key cleaned; ValueError where it nests deeper than `depth`."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict | list) and depth == 0:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        return {clean(key): clean_json(item, depth=depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [clean_json(item, depth=depth - 1) for item in value]
    return value


def check_json(text: str, schema: CompiledSchema | None) -> Any:
    """The JSON value that `text` is, cleaned; one fence around it is forgiven, anything else is not.

    Stricter than `json.loads`: no NaN, no Infinity, no key twice, no integer beyond 64 bits (orjson
    could not write it again).
    """
    _check_size(text)
    bare = text.strip(" \t\r\n")
    if not bare:
        raise BadOutput("empty_output", "the answer is empty")
    fenced = _FENCE.fullmatch(bare)
    value = _parse(fenced[1] if fenced else bare)
    if schema is not None:
        _match(value, schema)
    return value


def _parse(text: str) -> Any:
    try:
        return clean_json(_DECODER.decode(text))
    except json.JSONDecodeError as error:
        reason = f"not JSON at line {error.lineno}, column {error.colno}"
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:
        reason = str(error)
    raise BadOutput("bad_json", reason)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise ValueError("an integer beyond 64 bits")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("a number beyond a double's range")
    return number


def _constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)


def _match(value: Any, schema: CompiledSchema) -> None:
    try:
        schema.validator.validate(value)
    except jsonschema_rs.ValidationError as error:
        place = _pointer(error.instance_path, schema.names)
        message = f"at {place}: {_keyword(error)}"
    else:
        return
    raise BadOutput("schema_mismatch", message)


def _keyword(error: jsonschema_rs.ValidationError) -> str:
    """The keyword that failed; a plain false is named by what holds it, as additionalProperties."""
    if error.kind.name == "falseSchema" and error.schema_path:
        return str(error.schema_path[-1])
    return str(error.kind.name)


def _pointer(path: Sequence[str | int], names: frozenset[str] | None) -> str:
    """An RFC 6901 pointer, `(root)` for the whole; keys not among `names` are the model's own: `*`."""
    known = (isinstance(step, int) or names is None or step in names for step in path)
    steps = [str(step) if shown else "*" for step, shown in zip(path, known, strict=True)]
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps) or "(root)"


def compile_schema(schema: dict[str, Any] | bytes) -> CompiledSchema:
    """A job's JSON Schema, compiled once; draft 2020-12 unless `$schema` names another draft.

    No `$ref` is ever fetched, over the network or from disk (SSRF): what is not in the schema itself is
    a fault.  Raises UsageError.
    """
    try:
        return _compile(_canonical(schema) if isinstance(schema, bytes) else _dump(schema))
    except (orjson.JSONDecodeError, orjson.JSONEncodeError) as error:
        raise UsageError("schema: not JSON, or nested too deeply") from error


@lru_cache(_KEPT_SCHEMAS)
def _canonical(raw: bytes) -> bytes:
    if len(raw) > 2 * MAX_SCHEMA_BYTES:
        raise UsageError(f"schema: over {MAX_SCHEMA_BYTES} bytes")
    return _dump(orjson.loads(raw))


def _dump(schema: Any) -> bytes:
    if not isinstance(schema, dict):
        raise UsageError("schema: must be a JSON object")
    canonical = orjson.dumps(schema, option=orjson.OPT_SORT_KEYS)
    if len(canonical) > MAX_SCHEMA_BYTES:
        raise UsageError(f"schema: over {MAX_SCHEMA_BYTES} bytes")
    return canonical


@lru_cache(_KEPT_SCHEMAS)
def _compile(canonical: bytes) -> CompiledSchema:
    schema = orjson.loads(canonical)
    try:
        validator = jsonschema_rs.validator_for(schema, offline=True, pattern_options=_PATTERNS)
    except jsonschema_rs.ValidationError as error:
        fault = "a $ref or $schema that is not in it" if error.kind.name == "$ref" else _keyword(error)
        raise UsageError(f"schema: at {_pointer(error.instance_path, None)}: {fault}") from None
    except (jsonschema_rs.ReferencingError, ValueError) as error:
        raise UsageError(f"schema: {error}") from None
    return CompiledSchema(canonical, validator, frozenset(_names(schema)))


def _names(schema: Any) -> Iterable[str]:
    """Every property name that a schema speaks of."""
    if isinstance(schema, dict):
        properties = schema.get("properties")
        yield from properties if isinstance(properties, dict) else ()
    if isinstance(schema, dict | list):
        for part in schema.values() if isinstance(schema, dict) else schema:
            yield from _names(part)


def check_vectors(vectors: Sequence[Any], wanted: int, dimensions: int | None) -> None:
    """Passes `wanted` finite vectors, none of them zero, of one length, which is `dimensions` if given."""
    if len(vectors) != wanted:
        raise _wrong_vectors(f"{len(vectors)} vectors for {wanted} inputs")
    size = dimensions
    for place, vector in enumerate(vectors):
        if not isinstance(vector, list | tuple) or not vector:
            raise _wrong_vectors(f"vector {place} is empty")
        size = len(vector) if size is None else size
        if len(vector) != size:
            raise _wrong_vectors(f"vector {place} has {len(vector)} dimensions, not {size}")
        _check_numbers(place, vector)


def _check_numbers(place: int, vector: Sequence[Any]) -> None:
    # NaN and Infinity survive absolute values and sums, so one test of the sum sees every number
    if not {float, int}.issuperset(map(type, vector)):
        raise _wrong_vectors(f"vector {place} holds something that is no number")
    try:
        length = float(sum(map(abs, vector)))
    except OverflowError:
        length = math.inf
    if not math.isfinite(length):
        raise _wrong_vectors(f"vector {place} holds NaN or Infinity")
    if length == 0:
        raise _wrong_vectors(f"vector {place} is zero")


def _wrong_vectors(reason: str) -> BadOutput:
    return BadOutput("wrong_vectors", reason)
