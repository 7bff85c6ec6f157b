"""Quantiles of many values in little memory: counts of buckets whose bounds grow by a constant factor.  Pure.

A value x is in bucket ceil(log(x) / log(GROWTH)); a bucket answers with the value that is off by ERROR of any value in
it at most (DDSketch: Masson, Rim, Lee, VLDB 2019).  So a quantile is within ERROR (1 %) of the value of that rank.
Two sketches put together are the sketch of both, exactly.  From a hundredth of a millisecond to a week there are
fewer than 1,300 buckets, and an hour of one key fills some hundred.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

#: the relative error of a quantile
ERROR = 0.01
GROWTH = (1 + ERROR) / (1 - ERROR)
#: values below this are taken for 0
LEAST = 0.01

_LOG = math.log(GROWTH)
#: the bucket of 0, below every other
ZERO = math.floor(math.log(LEAST) / _LOG) - 1


def buckets(values: Iterable[float]) -> list[int]:
    """The bucket that each of these values, 0 or more, is in."""
    return [math.ceil(math.log(value) / _LOG) if value >= LEAST else ZERO for value in values]


def value_of(index: int) -> float:
    """What a bucket answers with."""
    return 0.0 if index == ZERO else 2 * GROWTH**index / (GROWTH + 1)


def quantile(counts: Mapping[int, int], q: float) -> float | None:
    """The least value that a share of q does not exceed (nearest rank); None of nothing."""
    rank = max(1, math.ceil(q * sum(counts.values())))
    seen = 0
    for index in sorted(counts):
        seen += counts[index]
        if seen >= rank:
            return value_of(index)
    return None


def stored(counts: Mapping[int, int]) -> dict[str, int]:
    """A sketch as JSON keeps it."""
    return {str(index): counts[index] for index in sorted(counts)}


def loaded(kept: Mapping[str, int]) -> Counter[int]:
    """A sketch that was kept."""
    return Counter({int(index): n for index, n in kept.items()})
