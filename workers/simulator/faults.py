"""Which faults a request meets: named in its prompt, or drawn by rate.  Pure, but for counting prompts.

A marker in the prompt is `[[sim:NAME]]`, `[[sim:NAME=ARG]]` or `[[sim:NAME*N]]`: the last acts only the first
N times this exact prompt is seen, so that a retry succeeds.  Several markers may stand in one prompt: the
first that still acts is played; `delay` and `slow` go with any other.  `[[sim:429*1]][[sim:500*2]]` is a 429,
two 500s, then an answer.  An unknown name is a 400 that lists the known ones, so that a typing error in a
test is seen.

    delay, slow                      SECONDS longer all along; SECONDS before the first byte
    400 401 404 429 500 503 (4xx 5xx) that status; ARG of 429 and 503 is Retry-After
    reset hang half stall            the connection breaks, or falls silent, before or within the reply
    midstream-error                  an error inside a reply of status 200
    notjson                          200 with a page of HTML
    think empty leak leak-open       thoughts apart; only thoughts; thoughts in the answer (ARG: family)
    truncated badjson wrongschema wronglabel huge nul
                                     the answer itself is bad; ARG of huge is MB
    vectors-short vectors-dims vectors-zero vectors-nan
                                     the same for embeddings
"""

from __future__ import annotations

import random
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TIMING = frozenset({"delay", "slow"})
NAMES = TIMING | {
    "reset", "hang", "half", "stall", "midstream-error", "notjson",
    "think", "empty", "leak", "leak-open", "truncated", "badjson", "wrongschema", "wronglabel", "huge", "nul",
    "vectors-short", "vectors-dims", "vectors-zero", "vectors-nan",
}  # fmt: skip

_MARKER = re.compile(r"\[\[sim:([\w-]+)(?:=([^\]*]*))?(?:\*(\d+))?\]\]")
_STATUS = re.compile(r"[45]\d\d")
#: prompts whose repetitions are counted; the oldest are forgotten
SEEN_LIMIT = 200_000


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault with its argument ("" when none was given); `times` 0 means always."""

    name: str
    arg: str = ""
    times: int = 0

    def __str__(self) -> str:
        return f"{self.name}={self.arg}" if self.arg else self.name

    @property
    def status(self) -> int:
        """The HTTP status of a status fault, else 0."""
        return int(self.name) if _STATUS.fullmatch(self.name) else 0

    def number(self, default: float) -> float:
        """The argument as a number; ValueError when it is none."""
        return float(self.arg) if self.arg else default


@dataclass(frozen=True, slots=True)
class Meeting:
    """What one request meets: one fault or none, and seconds added before and during the answer."""

    fault: Fault | None = None
    slow_s: float = 0.0
    delay_s: float = 0.0

    @property
    def name(self) -> str:
        return self.fault.name if self.fault else ""

    def __str__(self) -> str:
        timing = [f"{n}={s:g}" for n, s in (("slow", self.slow_s), ("delay", self.delay_s)) if s]
        return "+".join(([str(self.fault)] if self.fault else []) + timing)


NOTHING = Meeting()


def check_name(text: str) -> Fault:
    """`NAME` or `NAME=ARG` as a Fault; ValueError names the known ones."""
    name, _, arg = text.partition("=")
    if name not in NAMES and not _STATUS.fullmatch(name):
        raise ValueError(f"no fault is called {name!r}; known: 4xx, 5xx, {', '.join(sorted(NAMES))}")
    fault = Fault(name, arg)
    if name in TIMING | {"huge", "429", "503"}:
        fault.number(0)
    return fault


def markers(text: str) -> list[Fault]:
    """The faults named in a prompt, in its order; ValueError for an unknown name or a bad argument."""
    if "[[sim:" not in text:
        return []
    found = [(check_name(f"{m[1]}={m[2] or ''}"), int(m[3] or 0)) for m in _MARKER.finditer(text)]
    return [Fault(fault.name, fault.arg, times) for fault, times in found]


def active(faults: Sequence[Fault], seen: int) -> list[Fault]:
    """Those that act when this prompt is seen for the `seen`-th time (from 1).

    Counted faults of one prompt queue up: the first uses its N times, then the second its own.
    """
    acting, before, taken = [], 0, False
    for fault in faults:
        if fault.name in TIMING:
            if not fault.times or seen <= fault.times:
                acting.append(fault)
            continue
        if not taken and (not fault.times or seen <= before + fault.times):
            acting.append(fault)
            taken = True
        before += fault.times
    return acting


def meet(faults: Sequence[Fault]) -> Meeting:
    """Several acting faults as one meeting."""
    if not faults:
        return NOTHING
    return Meeting(
        fault=next((f for f in faults if f.name not in TIMING), None),
        slow_s=sum(f.number(5.0) for f in faults if f.name == "slow"),
        delay_s=sum(f.number(1.0) for f in faults if f.name == "delay"),
    )


class FaultBook:
    """Chooses the faults of each request; remembers how often a marked prompt was seen."""

    def __init__(self, rates: Mapping[str, float], seed: int) -> None:
        self._seen: OrderedDict[bytes, int] = OrderedDict()
        self.set_rates(rates, seed)

    def set_rates(self, rates: Mapping[str, float], seed: int) -> None:
        """Take new rates and start the draw anew."""
        self._rates = [(check_name(name), rate) for name, rate in rates.items() if rate > 0]
        self._random = random.Random(seed)

    def forget(self) -> None:
        """Forget which prompts were seen."""
        self._seen.clear()

    def choose(self, text: str, key: bytes) -> Meeting:
        """The meeting of the prompt `text`, known again by `key`; a marker goes before the rates."""
        named = markers(text)
        if named:
            seen = self._count(key) if any(f.times for f in named) else 1
            return meet(active(named, seen))
        return meet(self._drawn()) if self._rates else NOTHING

    def _count(self, key: bytes) -> int:
        self._seen[key] = self._seen.get(key, 0) + 1
        self._seen.move_to_end(key)
        if len(self._seen) > SEEN_LIMIT:
            self._seen.popitem(last=False)
        return self._seen[key]

    def _drawn(self) -> list[Fault]:
        draw = self._random.random()
        for fault, rate in self._rates:
            draw -= rate
            if draw < 0:
                return [fault]
        return []
