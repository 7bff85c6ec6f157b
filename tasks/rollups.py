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

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.sketches import buckets, quantile, stored

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
    jobs: Counter[str | None] = field(default_factory=Counter)  #: by the state they ended in
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


def summed(pages: Iterable[Sequence[Any]], width: int) -> tuple[int, dict[tuple[Any, ...], Summary]]:
    """How many rows there are, and key -> their sums. A row: `width` columns of a key, then FIGURES.

    A page's rows are sorted out by key, then summed column by column, which takes half the time of row by row.
    """
    found: dict[tuple[Any, ...], Summary] = {}
    n = 0
    for page in pages:
        n += len(page)
        alike: defaultdict[tuple[Any, ...], list[Any]] = defaultdict(list)
        for row in page:
            alike[row[: width + 2]].append(row[width + 2 :])
        for (*key, stale, sent), rows in alike.items():
            mine = found.setdefault(tuple(key), Summary())
            _add(mine, list(zip(*rows, strict=True)), stale=stale, sent=sent)
    return n, found


def _add(to: Summary, columns: Sequence[Any], *, stale: bool, sent: bool) -> None:
    """Add calls that are all stale or not, and all sent or not. columns: FIGURES behind those two."""
    ended, errors, leaked, t_in, t_out, thinking, cost, avoided, load, queue, first_token, duration = columns
    to.jobs.update(ended)
    if not sent:
        return
    to.calls += len(ended)
    to.tokens_in += sum(t_in)
    to.tokens_out += sum(t_out)
    to.tokens_thinking += sum(filter(None, thinking))
    to.cost_usd += sum(cost)
    to.avoided_usd += sum(avoided)
    if stale:
        to.stale += len(ended)
        return
    codes = Counter(errors)
    to.errors += len(errors) - codes[None]
    to.json_failures += sum(codes[code] for code in JSON_ERRORS)
    to.leaks += sum(leaked)
    to.load_ms += sum(load)
    to.wait.update(buckets(queue))
    to.duration.update(buckets(duration))
    to.first_token.update(buckets(filter(None, first_token)))


def regrouped(rows: Mapping[tuple[Any, ...], Summary], at: int | None) -> dict[Any, Summary]:
    """The sums by one part of the key, or of everything (None)."""
    found: dict[Any, Summary] = {}
    for key, summary in rows.items():
        found.setdefault(None if at is None else key[at], Summary()).add(summary)
    return found
