"""Counters and histograms, from calls and audits as they come.  Pure.

What counts as what is the rollups' (tasks/rollups.py): a call that was not sent only ends a job; a stale one cost what
it cost, and is in no histogram.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.auditing import Opinion
from tasks.registry import Registry
from tasks.routing import Decision
from tasks.states import COUNTED, JobState

#: upper ends of a histogram's buckets, seconds
WAIT_S = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400)
FIRST_TOKEN_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
DURATION_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
#: of what is nobody's, or is named by somebody else than a configuration
OTHER = "other"
#: of a call that brought an acceptable answer
OK = "ok"

Labels = tuple[str, ...]


@dataclass
class Buckets:
    """One series of a histogram: how many values are in each bucket, the last of which has no end, and their sum."""

    ends: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.ends) + 1)

    def add(self, value: float) -> None:
        """Count a value, in seconds."""
        self.counts[bisect_left(self.ends, value)] += 1
        self.total += value


@dataclass
class Tally:
    """Everything that was counted, by the labels that its family has (families.py)."""

    ended: Counter[Labels] = field(default_factory=Counter)
    calls: Counter[Labels] = field(default_factory=Counter)
    tokens: Counter[Labels] = field(default_factory=Counter)
    stale: Counter[Labels] = field(default_factory=Counter)
    refusals: Counter[Labels] = field(default_factory=Counter)
    audits: Counter[Labels] = field(default_factory=Counter)
    cost: defaultdict[Labels, float] = field(default_factory=lambda: defaultdict(float))
    avoided: float = 0.0
    sweeps: int = 0
    leases: int = 0
    slices: int = 0
    wait: dict[Labels, Buckets] = field(default_factory=dict)
    first_token: dict[Labels, Buckets] = field(default_factory=dict)
    duration: dict[Labels, Buckets] = field(default_factory=dict)

    def add_calls(self, rows: Iterable[Any], models: Collection[str], categories: Collection[str]) -> None:
        """Count calls. models, categories: those of the configuration, for rows that name others' words."""
        for row in rows:
            ours = row.job_id > 0  # a worker's; a helper's log may say anything
            category = row.category if ours or row.category in categories else OTHER
            self._add(row, row.model_asked if ours or row.model_asked in models else OTHER, category)

    def _add(self, row: Any, model: str, category: str) -> None:
        model_class, provider = row.model_class or OTHER, row.provider
        if row.ended is not None:
            self.ended[row.ended, model_class] += 1
            if row.ended == JobState.REFUSED:
                self.refusals[category,] += 1
        if not row.sent:
            return
        self.calls[provider, model_class, row.decision, _outcome(row.error_code)] += 1
        for direction, n in (("in", row.tokens_in), ("out", row.tokens_out), ("thinking", row.tokens_thinking)):
            if n:
                self.tokens[provider, model, direction] += n
        self.cost[provider,] += row.cost_usd
        self.avoided += row.avoided_usd
        if row.stale:
            self.stale[provider,] += 1
            return
        _of(self.wait, (model_class,), WAIT_S).add(row.queue_ms / 1000)
        _of(self.duration, (provider, model_class), DURATION_S).add(row.duration_ms / 1000)
        if row.first_token_ms:
            _of(self.first_token, (provider,), FIRST_TOKEN_S).add(row.first_token_ms / 1000)

    def add_audits(self, rows: Iterable[Any]) -> None:
        """Count audits that were judged."""
        self.audits.update((row.category, row.verdict) for row in rows)

    def add_sweeps(self, more: Mapping[str, int]) -> None:
        """Count what the sweep counted since."""
        self.sweeps += more.get("sweeps", 0)
        self.leases += more.get("leases", 0)
        self.slices += more.get("slices", 0)

    def add_ended(self, more: Mapping[str, int]) -> None:
        """Count jobs that ended without a call row: `state class` -> how many."""
        for key, n in more.items():
            state, _, model_class = key.partition(" ")
            self.ended[state, model_class] += n


def _outcome(code: str | None) -> str:
    """An error's code; helpers' exit codes, of which there may be any number, are one."""
    return OK if code is None else "exit" if code.startswith("exit_") else code


def _of(series: dict[Labels, Buckets], labels: Labels, ends: tuple[float, ...]) -> Buckets:
    found = series.get(labels)
    if found is None:
        found = series[labels] = Buckets(ends)
    return found


def since(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    """What totals have grown by; one that is smaller than it was began again."""
    return {key: n - before.get(key, 0) if n >= before.get(key, 0) else n for key, n in now.items()}


def zeros(registry: Registry) -> Tally:
    """A tally of nothing in which the series of the configuration are, so that their first event is a rise from 0."""
    empty = Tally()
    for name in registry.classes:
        empty.wait[name,] = Buckets(WAIT_S)
        empty.ended.update({(state.value, name): 0 for state in (*COUNTED, JobState.CANCELLED, JobState.EXPIRED)})
    for one in registry.classes.values():
        for serve in one.serve:
            empty.calls[serve.provider, one.name, Decision.OFFLOAD.value, OK] = 0
            empty.tokens.update({(serve.provider, serve.model, way): 0 for way in ("in", "out", "thinking")})
            empty.duration[serve.provider, one.name] = Buckets(DURATION_S)
    for provider in registry.providers:
        empty.stale[provider,] = 0
        empty.cost[provider,] = 0.0
        empty.first_token[provider,] = Buckets(FIRST_TOKEN_S)
    for category in registry.categories:
        empty.refusals[category,] = 0
        empty.audits.update({(category, verdict.value): 0 for verdict in Opinion})
    return empty
