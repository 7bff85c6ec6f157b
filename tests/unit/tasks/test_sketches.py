"""A sketch's quantiles are within its error of the values themselves, and two put together are one of both."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks.sketches import ERROR, LEAST, ZERO, buckets, loaded, quantile, stored, value_of

#: milliseconds of anything from nothing to a week
values = st.floats(0, 7 * 24 * 3_600_000, allow_nan=False)


@given(st.lists(values, min_size=1), st.sampled_from([0.0, 0.5, 0.75, 0.95, 0.99, 1.0]))
@example([0.0, LEAST], 0.5)
def test_a_quantile_is_near_the_value_of_its_rank(some: list[float], q: float) -> None:
    """Off by 1 % of it at most; what is below a hundredth of a millisecond is taken for nothing."""
    found = quantile(Counter(buckets(some)), q)
    exact = sorted(some)[max(0, math.ceil(q * len(some)) - 1)]
    assert found == pytest.approx(exact if exact >= LEAST else 0.0, rel=ERROR * 1.000001)


@given(st.lists(values), st.lists(values))
def test_sketches_are_put_together_exactly(some: list[float], others: list[float]) -> None:
    """It makes no difference whether values are counted together or apart, or were stored in between."""
    one, two = (loaded(stored(Counter(buckets(part)))) for part in (some, others))
    assert one + two == Counter(buckets(some + others))


def test_a_sketch_stays_small() -> None:
    """Between a hundredth of a millisecond and a week there are fewer than 1,300 buckets."""
    assert buckets([7 * 24 * 3_600_000])[0] - ZERO < 1_300
    assert value_of(ZERO) == 0.0
    assert quantile({}, 0.5) is None
