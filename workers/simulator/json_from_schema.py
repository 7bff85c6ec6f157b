"""A value that a JSON Schema accepts, for answers that must obey one.

Covers type, enum, const, properties, required, additionalProperties, minProperties, items, prefixItems,
min/max/ uniqueItems, minimum and maximum and their exclusive forms, multipleOf, lengths, pattern, format,
anyOf, oneOf, allOf, local $ref, nullable types.  `not`, `if` and `dependent…` are not followed.  A schema
that refers to itself ends where it allows that: with null, an empty list or a property left out.
"""

from __future__ import annotations

import math
import random
from typing import Any

from workers.simulator.pattern_text import matching

Schema = dict[str, Any]
#: levels after which everything optional is left out
SHALLOW = 4
#: levels after which null stands for whatever is asked
DEEPEST = 24
FORMATS = {
    "date": "2026-01-01", "date-time": "2026-01-01T00:00:00Z", "time": "00:00:00Z", "duration": "P1D",
    "email": "simulated@example.com", "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "https://example.com/simulated", "uri-reference": "/simulated", "iri": "https://example.com/simulated",
    "hostname": "example.com", "ipv4": "192.0.2.1", "ipv6": "2001:db8::1", "json-pointer": "/simulated",
    "regex": "simulated",
}  # fmt: skip


def instance(schema: object, seed: int) -> Any:
    """A value for `schema`, the same for the same seed; `{"simulated": true}` for what is no schema."""
    if not isinstance(schema, dict):
        return {"simulated": True}
    return _Writer(schema, random.Random(seed)).value(schema, 0)


def offending(schema: object) -> Any:
    """A JSON value that `schema` most likely rejects: other keys, or another type."""
    if not isinstance(schema, dict) or schema.get("required"):
        return {"simulated_wrong": True}
    if schema.get("type") == "object" or "properties" in schema:
        return ["simulated wrong schema"]
    return {"simulated_wrong": True}


class _Writer:
    def __init__(self, root: Schema, rng: random.Random) -> None:
        self._root, self._rng = root, rng

    def value(self, schema: object, depth: int) -> Any:
        if not isinstance(schema, dict):
            return "simulated"
        schema = self._flat(schema, depth)
        if depth > DEEPEST:
            return None
        if "const" in schema:
            return schema["const"]
        if enum := schema.get("enum"):
            return self._rng.choice(enum)
        match self._type(schema, depth):
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "integer":
                return self._number(schema, whole=True)
            case "number":
                return self._number(schema, whole=False)
            case "boolean":
                return self._rng.random() < 0.5
            case "null":
                return None
        return self._string(schema)

    def _flat(self, schema: Schema, depth: int) -> Schema:
        """The schema with references followed, allOf merged and one branch of anyOf and oneOf taken."""
        for _ in range(32):
            if "$ref" in schema:
                schema = _merge(_without(schema, "$ref"), self._follow(schema["$ref"]))
            elif parts := schema.get("allOf"):
                schema = _without(schema, "allOf")
                for part in parts:
                    schema = _merge(schema, self._flat(part, depth) if isinstance(part, dict) else {})
            elif branches := schema.get("anyOf"):
                schema = _merge(_without(schema, "anyOf"), self._branch(branches, depth))
            elif branches := schema.get("oneOf"):
                schema = _merge(_without(schema, "oneOf"), self._branch(branches, depth))
            else:
                break
        return schema

    def _follow(self, ref: object) -> Schema:
        node: Any = self._root
        for part in str(ref).lstrip("#").strip("/").split("/"):
            if part:
                key = part.replace("~1", "/").replace("~0", "~")
                node = node[int(key)] if isinstance(node, list) and key.isdigit() else _get(node, key)
        return node if isinstance(node, dict) else {}

    def _branch(self, branches: list[Any], depth: int) -> Schema:
        known = [b for b in branches if isinstance(b, dict)]
        nulls = [b for b in known if b.get("type") == "null"]
        others = [b for b in known if b.get("type") != "null"]
        plain = [b for b in others if b.get("type") in ("string", "integer", "number", "boolean") or "enum" in b]
        if depth >= SHALLOW:
            return (nulls or plain or others or [{}])[0]
        return (others or nulls or [{}])[0]

    def _type(self, schema: Schema, depth: int) -> str:
        kind = schema.get("type")
        if isinstance(kind, list):
            others = [k for k in kind if k != "null"]
            kind = "null" if "null" in kind and (depth >= SHALLOW or not others) else (others or [None])[0]
        if isinstance(kind, str):
            return kind
        for key, meant in _MEANT.items():
            if key in schema:
                return meant
        return "string"

    def _object(self, schema: Schema, depth: int) -> dict[str, Any]:
        properties = schema.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        extra = schema.get("additionalProperties", True)
        names = _names(schema, properties, optional=depth < SHALLOW)
        made = {key: self.value(properties.get(key, extra), depth + 1) for key in names}
        while len(made) < int(schema.get("minProperties", 0)) and extra is not False:
            made[f"simulated_{len(made)}"] = self.value(extra, depth + 1)
        return made

    def _array(self, schema: Schema, depth: int) -> list[Any]:
        least = int(schema.get("minItems", 0))
        most = int(schema.get("maxItems", max(least, 2)))
        first = schema.get("prefixItems")
        first = first if isinstance(first, list) else []
        size = least if depth >= SHALLOW else max(least, min(most, max(2, len(first))))
        if size > len(first) and schema.get("items") is False:
            size = len(first)
        made: list[Any] = []
        for position in range(size):
            item = first[position] if position < len(first) else schema.get("items", True)
            made.append(self._another(item, made, bool(schema.get("uniqueItems")), depth + 1))
        return [x for x in made if x is not _NO_OTHER]

    def _another(self, item: object, made: list[Any], unique: bool, depth: int) -> Any:
        if not unique:
            return self.value(item, depth)
        tries = (self.value(item, depth) for _ in range(50))
        return next((value for value in tries if value not in made), _NO_OTHER)

    def _number(self, schema: Schema, whole: bool) -> int | float:
        step = _limit(schema, "multipleOf")
        if step is not None and step > 0:
            low, high = _bounds(schema)
            count = math.ceil(low / step) if low > -math.inf else min(0, math.floor(min(high, 0) / step))
            return int(count * step) if whole else count * step
        if whole:
            return self._rng.randint(*_whole_bounds(schema))
        low, high = _bounds(schema)
        if low > -math.inf and high < math.inf:
            return (low + high) / 2
        return low + 1.5 if low > -math.inf else min(0.5, high - 1)

    def _string(self, schema: Schema) -> str:
        least = int(schema.get("minLength", 0))
        most = schema.get("maxLength")
        if isinstance(pattern := schema.get("pattern"), str):
            return matching(pattern, least, most)
        if text := FORMATS.get(str(schema.get("format"))):
            return text
        text = f"simulated {self._rng.randrange(4096):03x}"
        text += " simulated" * max(0, -(-(least - len(text)) // 10))
        return text if most is None or len(text) <= most else self._short(int(most), least)

    def _short(self, most: int, least: int) -> str:
        """A text of `most` characters at most that still differs from its like."""
        mark = f"{self._rng.randrange(4096):03x}"
        return ("simulated "[: max(0, most - 3)] + mark)[: max(most, least)][:most]


_NO_OTHER = object()
_MEANT = {
    "properties": "object", "required": "object", "additionalProperties": "object", "minProperties": "object",
    "items": "array", "prefixItems": "array", "minItems": "array", "maxItems": "array",
    "minimum": "number", "maximum": "number", "multipleOf": "number",
    "exclusiveMinimum": "number", "exclusiveMaximum": "number",
}  # fmt: skip


def _get(node: Any, key: str) -> Any:
    return node.get(key) if isinstance(node, dict) else None


def _without(schema: Schema, key: str) -> Schema:
    return {k: v for k, v in schema.items() if k != key}


def _merge(left: Schema, right: Schema) -> Schema:
    """Both schemas at once, as far as that is one schema."""
    merged = {**left, **right}
    if "properties" in left and "properties" in right:
        merged["properties"] = {**left["properties"], **right["properties"]}
    if "required" in left and "required" in right:
        merged["required"] = [
            *left["required"],
            *(key for key in right["required"] if key not in left["required"]),
        ]
    if "enum" in left and "enum" in right:
        merged["enum"] = [value for value in left["enum"] if value in right["enum"]] or right["enum"]
    for key, choose in _TIGHTER.items():
        if key in left and key in right:
            merged[key] = choose(left[key], right[key])
    return merged


_TIGHTER = {
    "minimum": max, "maximum": min, "minLength": max, "maxLength": min, "minItems": max, "maxItems": min,
    "exclusiveMinimum": max, "exclusiveMaximum": min,
}  # fmt: skip


def _names(schema: Schema, properties: Schema, optional: bool) -> list[str]:
    """The keys of an object: the required ones, and others as far as they are wanted and allowed."""
    required = schema.get("required")
    needed = [key for key in required if isinstance(key, str)] if isinstance(required, list) else []
    others = [key for key, sub in properties.items() if key not in needed and sub is not False and optional]
    kept = set(needed + others[: max(0, int(schema.get("maxProperties", len(needed) + len(others))) - len(needed))])
    return [key for key in properties if key in kept] + [key for key in needed if key not in properties]


def _limit(schema: Schema, key: str) -> float | None:
    value = schema.get(key)
    return value if type(value) in (int, float) else None


def _bounds(schema: Schema) -> tuple[float, float]:
    """Lowest and highest number, infinite where open."""
    lows = [_limit(schema, key) for key in ("minimum", "exclusiveMinimum")]
    highs = [_limit(schema, key) for key in ("maximum", "exclusiveMaximum")]
    return (
        max((x for x in lows if x is not None), default=-math.inf),
        min((x for x in highs if x is not None), default=math.inf),
    )


def _whole_bounds(schema: Schema) -> tuple[int, int]:
    """Lowest and highest integer, a hundred apart at most; near 0 where open."""
    lows = [math.ceil(x) for x in [_limit(schema, "minimum")] if x is not None]
    lows += [math.floor(x) + 1 for x in [_limit(schema, "exclusiveMinimum")] if x is not None]
    highs = [math.floor(x) for x in [_limit(schema, "maximum")] if x is not None]
    highs += [math.ceil(x) - 1 for x in [_limit(schema, "exclusiveMaximum")] if x is not None]
    high = min(highs, default=None)
    low = max(lows) if lows else min(0, high if high is not None else 0)
    return low, max(low, min(low + 99, high if high is not None else low + 99))
