"""What an hour's calls come to.  Pure: one pass over their rows, in the memory of the keys they have.

A call belongs to the hour, UTC, in which it ended, whenever it was recorded: whole hours since 1970, so that no change
of the local time and no shift of a clock can make two of one.

    calls             requests; stale ones are among them: they cost what they cost
    stale, errors     of those, results that came too late; and others that brought no acceptable answer
    jobs_…            jobs that ended so, refused ones and those that could not be sent included; no stale call ends one
    tokens_…, cost    of every call; thinking tokens are among those out
    leaks             answers whose thoughts had leaked into them
    json_failures     answers that were no JSON, or not of their schema
    wait, first_token, duration    of calls that are not stale, in ms: sketches with an error of 1 % (tasks/sketches.py)
    cost_avoided      see tasks/pricing.py, less what every call of the key cost: where nothing is avoided (an audit, an
                      escalation, a fallback) it is what that cost, below 0, so that the sum over all keys is net
    audits            second opinions judged in this hour and how many of them agree, by the key of the job they are
                      of: plain counts; `offload audit report` weighs them

`audits` are the one figure that is not made of calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.sketches import bucket, quantile, stored

HOUR_S = 3600
#: a rollup's key, beside its hour
KEY = ("category", "model_class", "model", "provider", "node", "app", "decision")
#: figures that are plain sums
SUMS = (
    "calls",
    "stale",
    "errors",
    "jobs_done",
    "jobs_failed",
    "jobs_escalated",
    "jobs_refused",
    "tokens_in",
    "tokens_out",
    "tokens_thinking",
    "leaks",
    "json_failures",
    "audits",
    "audits_agreed",
    "cost_usd",
    "cost_avoided_usd",
    "load_ms",
)
SKETCHES = ("wait", "first_token", "duration")
QUANTILES = {"p50": 0.5, "p75": 0.75, "p95": 0.95, "p99": 0.99}
#: errors of answers that were no such JSON
JSON_ERRORS = frozenset({"bad_json", "schema_mismatch"})

#: what `summed` reads of a call behind its key, in this order
FIGURES = (
    "stale",
    "sent",
    "ended",
    "error_code",
    "leaked",
    "tokens_in",
    "tokens_out",
    "tokens_thinking",
    "cost_usd",
    "avoided_usd",
    "load_ms",
    "queue_ms",
    "first_token_ms",
    "duration_ms",
)


def hour_of(at: float) -> int:
    """The hour that a unix time is in."""
    return int(at // HOUR_S)


def waited_ms(queued_at: float, started_at: float) -> float:
    """How long a job waited for its call; 0 where nobody knows, or clocks do not agree."""
    return max(0.0, (started_at - queued_at) * 1000) if queued_at else 0.0


@dataclass(slots=True)
class Summary:
    """The sums of one key."""

    calls: int = 0
    stale: int = 0
    errors: int = 0
    jobs: Counter[str] = field(default_factory=Counter)  #: by the state they ended in
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_thinking: int = 0
    leaks: int = 0
    json_failures: int = 0
    audits: int = 0
    audits_agreed: int = 0
    cost_usd: float = 0.0
    avoided_usd: float = 0.0
    load_ms: float = 0.0
    wait: Counter[int] = field(default_factory=Counter)
    first_token: Counter[int] = field(default_factory=Counter)
    duration: Counter[int] = field(default_factory=Counter)

    def add(self, other: Summary) -> None:
        """Take in another key's sums."""
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, Counter):
                mine.update(theirs)
            else:
                setattr(self, name, mine + theirs)

    def columns(self) -> dict[str, Any]:
        """The figures of a rollup's row."""
        found: dict[str, Any] = {name: getattr(self, name) for name in SUMS if hasattr(self, name)}
        found |= {f"jobs_{state}": self.jobs[state] for state in ("done", "failed", "escalated", "refused")}
        found["cost_avoided_usd"] = self.avoided_usd - self.cost_usd
        for name in SKETCHES:
            counts: Counter[int] = getattr(self, name)
            found |= {f"{name}_{p}": quantile(counts, q) for p, q in QUANTILES.items()}
            found[name] = stored(counts)
        return found


def summed(rows: Iterable[Any], width: int) -> tuple[int, dict[tuple[Any, ...], Summary]]:
    """How many rows there are, and key -> their sums. A row: `width` columns of a key, then FIGURES."""
    found: dict[tuple[Any, ...], Summary] = {}
    n = 0
    for row in rows:
        n += 1
        key = row[:width]
        mine = found.get(key)
        if mine is None:
            mine = found[key] = Summary()
        _add(mine, *row[width:])
    return n, found


def _add(
    to: Summary,
    stale: bool,
    sent: bool,
    ended: str | None,
    error_code: str | None,
    leaked: bool,
    tokens_in: int,
    tokens_out: int,
    tokens_thinking: int | None,
    cost_usd: float,
    avoided_usd: float,
    load_ms: float,
    queue_ms: float,
    first_token_ms: float,
    duration_ms: float,
) -> None:
    if ended is not None:
        to.jobs[ended] += 1
    if not sent:
        return
    to.calls += 1
    to.tokens_in += tokens_in
    to.tokens_out += tokens_out
    to.tokens_thinking += tokens_thinking or 0
    to.cost_usd += cost_usd
    to.avoided_usd += avoided_usd
    if stale:
        to.stale += 1
        return
    if error_code is not None:
        to.errors += 1
        to.json_failures += error_code in JSON_ERRORS
    to.leaks += leaked
    to.load_ms += load_ms
    to.wait[bucket(queue_ms)] += 1
    to.duration[bucket(duration_ms)] += 1
    if first_token_ms > 0:
        to.first_token[bucket(first_token_ms)] += 1


def regrouped(rows: Mapping[tuple[Any, ...], Summary], at: int | None) -> dict[Any, Summary]:
    """The sums by one part of the key, or of everything (None)."""
    found: dict[Any, Summary] = {}
    for key, summary in rows.items():
        found.setdefault(None if at is None else key[at], Summary()).add(summary)
    return found
