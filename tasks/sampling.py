"""Which finished jobs get a second opinion, what share of them is right, and when that share has dropped.

A job is audited if its draw, a keyed hash of its ids, is below the probability of the moment.  The share is weighted
by one over that probability, because jobs are audited more often while something looks wrong.  A drop is found by a
CUSUM (Page 1954, "Continuous inspection schemes", Biometrika 41) of an agreement of `GOOD` against one of `BAD`.

`ALARM` is the smallest threshold, to a hundredth, that gives at most one false alarm in 4,000 audits at `GOOD`.  The
statistic moves by log(0.15/0.05) and log(0.85/0.95), so it takes few values and its Markov chain is solved exactly:

    threshold   audits to the first false alarm, from 0   audits between false alarms
    4.90        3,937                                     3,817
    4.91        4,026                                     3,902
    4.92        4,031                                     3,907
    4.93        4,142                                     4,018

The last column is the shorter and decides: after an alarm the statistic is armed again at half, which is nearer to
the next one than 0 is.  Unsure opinions are no verdicts: they enter neither the share nor the test.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from hashlib import blake2b

#: of every new stratum, all audited
FIRST = 30
#: times the rate while the statistic is over half its alarm level
MORE_OFTEN = 10
#: agreement the test takes for fine, and for a drop
GOOD, BAD = 0.95, 0.85
#: level of the statistic, in nats, at which the alarm is raised: 4,018 audits between false ones
ALARM = 4.93
#: what a verdict adds to the statistic, in nats
_DISAGREED, _AGREED = math.log((1 - BAD) / (1 - GOOD)), math.log(BAD / GOOD)


def draw(salt: bytes, batch_id: str, line_id: str) -> float:
    """A job's number in [0, 1): uniform, the same every time, not to be guessed without the salt (64 bytes at most).

    A job is audited if its number is below the probability; a higher probability only adds jobs.
    """
    digest = blake2b(_packed(batch_id, line_id), digest_size=8, key=salt).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53  # 53 bits: more would round up to 1


def probability(rate: float, statistic: float) -> float:
    """The chance of an audit now: the rate, or `MORE_OFTEN` times it while the statistic is over half of `ALARM`."""
    return min(1.0, MORE_OFTEN * rate) if statistic > ALARM / 2 else rate


def template(*parts: str) -> str:
    """The name of the stratum that these texts make: 16 hex digits, the same on every machine."""
    return blake2b(_packed(*parts), digest_size=8).hexdigest()


def _packed(*parts: str) -> bytes:
    """The parts with their lengths, so that ("a", "bc") and ("ab", "c") differ."""
    texts = [part.encode("utf-8", "surrogatepass") for part in parts]  # JSON may escape half a surrogate pair
    return b"".join(len(text).to_bytes(8, "big") + text for text in texts)


@dataclass(frozen=True)
class Estimate:
    """The share of jobs that a second opinion agrees with, and its 95 % interval."""

    n: int
    effective_n: float  #: equally likely audits that would tell as much
    agreement: float
    low: float
    high: float


def wilson(agreement: float, n: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """The score interval of a share seen in `n` audits (Wilson 1927, JASA 22); `n` may be fractional."""
    if n <= 0:
        return 0.0, 1.0
    widening = z * z / n
    middle = agreement + widening / 2
    half = math.sqrt(widening * (agreement * (1 - agreement) + widening / 4))
    return max(0.0, (middle - half) / (1 + widening)), min(1.0, (middle + half) / (1 + widening))


def estimate(audits: Mapping[tuple[bool, float], int]) -> Estimate | None:
    """The share from audits: how many there are of each (agreed, the probability it was chosen with); None of none.

    Weights are 1/p (Hájek 1971); the interval is Wilson's at the effective size (Σw)²/Σw² (Kish 1965).
    """
    weighted = [(agreed, 1 / p, n) for (agreed, p), n in audits.items()]
    if not weighted:
        return None
    total = sum(n * w for _, w, n in weighted)
    agreement = sum(n * w if agreed else 0.0 for agreed, w, n in weighted) / total
    effective_n = total * total / sum(n * w * w for _, w, n in weighted)
    return Estimate(sum(audits.values()), effective_n, agreement, *wilson(agreement, effective_n))


@dataclass(frozen=True)
class CusumState:
    """The test after `n` verdicts."""

    statistic: float = 0.0
    alarms: int = 0
    armed: bool = True  #: False from an alarm until the statistic has fallen to half of `ALARM`
    n: int = 0


def step(statistic: float, agreed: bool) -> float:
    """The statistic after one more verdict, from 0 to `ALARM`: capped, so that it can fall back."""
    return min(ALARM, max(0.0, statistic + (_AGREED if agreed else _DISAGREED)))


def advance(state: CusumState, agreed: bool) -> CusumState:
    """The test after one more verdict; reaching `ALARM` while armed is an alarm."""
    statistic = step(state.statistic, agreed)
    alarm = state.armed and statistic >= ALARM
    armed = not alarm and (state.armed or statistic <= ALARM / 2)
    return CusumState(statistic, state.alarms + alarm, armed, state.n + 1)


def replay(verdicts: Iterable[bool]) -> CusumState:
    """The test after these verdicts, from the beginning."""
    return reduce(advance, verdicts, CusumState())
