"""Embeddings: a pure function of model and text, of unit length, and bad ones on request."""

from __future__ import annotations

import hashlib
from math import sqrt

Vector = list[float | None]
#: a byte of the digest as a coordinate; never 0, so that no vector is
_COORDINATE = [byte - 127.5 for byte in range(256)]


def embed(model: str, text: str, dimensions: int) -> Vector:
    """The vector of `text`: the same for the same text, another for another."""
    digest = hashlib.shake_128(f"{model}\0{text}".encode("utf-8", "replace")).digest(dimensions)
    raw = [_COORDINATE[byte] for byte in digest]
    norm = sqrt(sum([x * x for x in raw]))
    return [x / norm for x in raw]


def spoil(vectors: list[Vector], fault: str) -> list[Vector]:
    """`vectors` with one of the faults vectors-…; None stands for NaN until it is written."""
    if fault == "vectors-short":
        return vectors[:-1]
    if fault == "vectors-dims":
        return [vector[:-1] for vector in vectors]
    if fault == "vectors-zero":
        return [[0.0] * len(vector) for vector in vectors]
    if fault == "vectors-nan":
        return [[None, *vector[1:]] for vector in vectors]
    return vectors
