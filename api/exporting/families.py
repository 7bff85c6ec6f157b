"""Every metric: its name, its labels, what it says.  Pure.

a gauge of the ledger or of Redis    is left out while nobody knows it; `offload_…_up` says why
a counter, a histogram               is always there; it only grows
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from api.exporting.tally import Buckets, Labels, Tally
from tasks.ledger.gauges import Gauges
from tasks.states import JobState

#: services whose last run is told
SERVICES = ("sweep", "audit", "rollup", "prune", "notify")

Values = Iterable[tuple[Sequence[str], float]]


def families(
    gauges: Gauges | None, queued: Mapping[str, int] | None, lengths: Mapping[str, int] | None, tally: Tally
) -> Iterator[Metric]:
    """All metrics. None: the ledger, or Redis, did not answer.

    queued: class -> jobs that wait. lengths: class -> messages in its list.
    """
    yield _gauge("offload_ledger_up", "Whether the ledger answered this scrape.", (), [((), gauges is not None)])
    yield _gauge("offload_redis_up", "Whether Redis answered this scrape.", (), [((), lengths is not None)])
    yield from _of_ledger(gauges, queued or {}) if gauges is not None else _of_ledger(Gauges(), {})
    messages = [((name,), n) for name, n in (lengths or {}).items()]
    yield _gauge("offload_queue_messages", "Messages in a class's Redis list.", ("model_class",), messages)
    yield from _counters(tally)
    yield from _histograms(tally)


def _of_ledger(gauges: Gauges, queued: Mapping[str, int]) -> Iterator[Metric]:
    of_class, of_worker = ("model_class",), ("provider", "node")
    workers, fresh = gauges.workers, [row for row, is_fresh in gauges.workers if is_fresh]
    jobs = gauges.out | {(JobState.QUEUED, name): n for name, n in queued.items()}
    yield _gauge(
        "offload_jobs",
        "Jobs that are not terminal.",
        ("state", "model_class"),
        [((state.value, name), n) for (state, name), n in jobs.items()],
    )
    yield _gauge(
        "offload_oldest_due_seconds",
        "How long the oldest due job waits; 0 where none does.",
        of_class,
        [((name,), age) for name, age in gauges.oldest.items()],
    )
    yield _gauge(
        "offload_provider_in_flight",
        "Calls running, by the worker's last heartbeat.",
        of_worker,
        [((row.provider, row.node), row.in_flight) for row in fresh],
    )
    yield _gauge(
        "offload_provider_limit",
        "Calls that may run at once.",
        of_worker,
        [((row.provider, row.node), row.capacity) for row in fresh],
    )
    yield _gauge(
        "offload_worker_up",
        "Whether a worker's heartbeat is fresh.",
        of_worker,
        [((row.provider, row.node), is_fresh) for row, is_fresh in workers],
    )
    yield _gauge(
        "offload_dispatch_window",
        "Jobs that may be sent and unclaimed.",
        of_class,
        [((name,), n) for name, n in gauges.windows.items()],
    )
    unclaimed = [((name,), n) for (state, name), n in gauges.out.items() if state is JobState.DISPATCHED]
    yield _gauge("offload_dispatch_unclaimed", "Jobs that are sent and unclaimed.", of_class, unclaimed)
    yield _gauge(
        "offload_quota_left_ratio",
        "What is left of a limit's present window: 1 untouched, 0 used up.",
        ("provider", "unit", "per"),
        gauges.quotas.items(),
    )
    yield _gauge(
        "offload_last_tick_timestamp_seconds",
        "When a periodic service last ran, by the ledger's clock.",
        ("service",),
        [((name,), gauges.ticks[name][0]) for name in SERVICES if name in gauges.ticks],
    )


def _counters(tally: Tally) -> Iterator[Metric]:
    yield _counter("offload_jobs_ended", "Jobs that ended.", ("state", "model_class"), tally.ended.items())
    yield _counter(
        "offload_calls",
        "Requests to backends, stale ones included. outcome: ok, or the error's code.",
        ("provider", "model_class", "decision", "outcome"),
        tally.calls.items(),
    )
    yield _counter(
        "offload_tokens",
        "Tokens of all calls, by the model asked for. thinking: is among out.",
        ("provider", "model", "direction"),
        tally.tokens.items(),
    )
    yield _counter("offload_stale_writes", "Results that came too late.", ("provider",), tally.stale.items())
    yield _counter("offload_refusals", "Jobs refused.", ("category",), tally.refusals.items())
    yield _counter("offload_audits", "Second opinions given.", ("category", "verdict"), tally.audits.items())
    yield _counter("offload_sweeps", "Sweeps of beat.", (), [((), tally.sweeps)])
    yield _counter("offload_leases_expired", "Leases that the sweep took back.", (), [((), tally.leases)])
    yield _counter("offload_slices_resent", "Lost slices sent again.", (), [((), tally.slices)])
    yield _counter("offload_cost_usd", "What calls cost, by the configured prices.", ("provider",), tally.cost.items())
    yield _counter(
        "offload_cost_avoided_usd",
        "What the tokens of local jobs done would have cost at class cloud; net is this less offload_cost_usd_total.",
        (),
        [((), tally.avoided)],
    )


def _histograms(tally: Tally) -> Iterator[Metric]:
    yield _histogram("offload_wait_seconds", "From due to the call's start.", ("model_class",), tally.wait)
    yield _histogram("offload_first_token_seconds", "To the first token.", ("provider",), tally.first_token)
    yield _histogram("offload_duration_seconds", "Of calls.", ("provider", "model_class"), tally.duration)


def _gauge(name: str, says: str, labels: Sequence[str], values: Values) -> Metric:
    family = GaugeMetricFamily(name, says, labels=labels)
    for own, value in values:
        family.add_metric(own, float(value))
    return family


def _counter(name: str, says: str, labels: Sequence[str], values: Values) -> Metric:
    family = CounterMetricFamily(name, says, labels=labels)
    for own, value in values:
        family.add_metric(own, float(value))
    return family


def _histogram(name: str, says: str, labels: Sequence[str], series: Mapping[Labels, Buckets]) -> Metric:
    family = HistogramMetricFamily(name, says, labels=labels)
    for own, found in series.items():
        ends = [*(f"{end:g}" if end % 1 else f"{end:.1f}" for end in found.ends), "+Inf"]
        sums = list(accumulate(found.counts))
        family.add_metric(own, list(zip(ends, sums, strict=True)), found.total)
    return family
