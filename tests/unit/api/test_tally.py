"""What is counted of calls, and that every agreed metric is told under its name with its labels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from api.exporting.families import families
from api.exporting.tally import OTHER, Tally, since, zeros
from tasks.config import parse
from tasks.ledger.gauges import Gauges
from tasks.states import JobState
from tests.unit.workers.jobs import REGISTRY

#: the names that dashboards and alerts are written for, with their labels
AGREED = {
    "offload_jobs": {"state", "model_class"},
    "offload_oldest_due_seconds": {"model_class"},
    "offload_provider_in_flight": {"provider", "node"},
    "offload_provider_limit": {"provider", "node"},
    "offload_worker_up": {"provider", "node"},
    "offload_dispatch_window": {"model_class"},
    "offload_dispatch_unclaimed": {"model_class"},
    "offload_quota_left_ratio": {"provider", "unit", "per"},
    "offload_last_tick_timestamp_seconds": {"service"},
    "offload_ledger_up": set(),
    "offload_redis_up": set(),
    "offload_queue_messages": {"model_class"},
    "offload_jobs_ended_total": {"state", "model_class"},
    "offload_calls_total": {"provider", "model_class", "decision", "outcome"},
    "offload_tokens_total": {"provider", "model", "direction"},
    "offload_stale_writes_total": {"provider"},
    "offload_refusals_total": {"category"},
    "offload_audits_total": {"category", "verdict"},
    "offload_sweeps_total": set(),
    "offload_leases_expired_total": set(),
    "offload_slices_resent_total": set(),
    "offload_cost_usd_total": {"provider"},
    "offload_cost_avoided_usd_total": set(),
    "offload_wait_seconds": {"model_class"},
    "offload_first_token_seconds": {"provider"},
    "offload_duration_seconds": {"provider", "model_class"},
}

CALL: dict[str, Any] = {
    "job_id": 1,
    "category": "plain",
    "model_class": "small",
    "provider": "gpu",
    "model_asked": "tiny",
    "decision": "offload",
    "sent": True,
    "stale": False,
    "ended": "done",
    "error_code": None,
    "tokens_in": 10,
    "tokens_out": 5,
    "tokens_thinking": 2,
    "cost_usd": 0.5,
    "avoided_usd": 2.0,
    "queue_ms": 1500.0,
    "first_token_ms": 40.0,
    "duration_ms": 700.0,
}


def counted(*changes: dict[str, Any]) -> Tally:
    """A tally of calls, each the one above with changes."""
    tally = Tally()
    tally.add_calls([SimpleNamespace(**(CALL | change)) for change in changes], REGISTRY.models, REGISTRY.categories)
    return tally


def name_of(metric: Metric) -> str:
    return metric.name + ("_total" if metric.type == "counter" else "")


def test_a_call_is_counted_everywhere() -> None:
    """Calls, tokens, cost, what it ended, and the three times in seconds."""
    tally = counted({})
    assert tally.calls == {("gpu", "small", "offload", "ok"): 1}
    assert tally.tokens == {("gpu", "tiny", "in"): 10, ("gpu", "tiny", "out"): 5, ("gpu", "tiny", "thinking"): 2}
    assert tally.ended == {("done", "small"): 1}
    assert (tally.cost, tally.avoided) == ({("gpu",): 0.5}, 2.0)
    assert {n: getattr(tally, n).popitem()[1].total for n in ("wait", "first_token", "duration")} == {
        "wait": 1.5,
        "first_token": 0.04,
        "duration": 0.7,
    }


def test_a_stale_call_costs_and_is_in_no_histogram() -> None:
    """As in the rollups."""
    tally = counted({"stale": True, "ended": None})
    assert tally.stale == {("gpu",): 1}
    assert tally.calls.total() == 1
    assert tally.cost == {("gpu",): 0.5}
    assert tally.wait == tally.duration == tally.first_token == tally.ended == {}


def test_a_job_without_a_call_only_ends() -> None:
    """Refused, or not to be sent: no call of anybody."""
    tally = counted({"sent": False, "ended": "refused", "decision": "refuse", "provider": ""})
    assert tally.ended == {("refused", "small"): 1}
    assert tally.refusals == {("plain",): 1}
    assert tally.calls.total() == tally.tokens.total() == 0


def test_a_failed_call_has_its_code_for_outcome() -> None:
    """A call without a first token is in no histogram of first tokens."""
    tally = counted({"error_code": "http_500", "ended": None, "first_token_ms": 0.0})
    assert tally.calls == {("gpu", "small", "offload", "http_500"): 1}
    assert tally.first_token == {}


def test_labels_are_no_words_of_others() -> None:
    """What a helper's log says of category, model and exit code makes no series of its own."""
    helper = {"job_id": 0, "model_class": "", "category": "anything", "model_asked": "anything", "provider": "straight"}
    tally = counted(helper | {"error_code": "exit_77", "ended": "refused"}, helper | {"error_code": "exit_78"})
    assert tally.calls == {("straight", OTHER, "offload", "exit"): 2}
    assert tally.refusals == {(OTHER,): 1}
    assert {model for _, model, _ in tally.tokens} == {OTHER}


def test_every_agreed_metric_is_told() -> None:
    """By its name and with its labels, and no other one."""
    tally = counted({})
    tally.refusals["plain",] += 1
    tally.stale["gpu",] += 1
    tally.audits["plain", "agree"] += 1
    worker = SimpleNamespace(provider="gpu", node="n", in_flight=1, capacity=4)
    gauges = Gauges(
        out={(JobState.RUNNING, "small"): 1, (JobState.DISPATCHED, "small"): 2},
        oldest={"small": 1.0},
        workers=[(worker, True)],  # type: ignore[list-item]  # a row's fields are all it needs
        windows={"small": 3},
        quotas={("gpu", "requests", "day"): 0.5},
        ticks={"sweep": (1.0, {}), "unserved": (1.0, {})},
    )
    told = list(families(gauges, {"small": 4}, {"small": 5}, tally))
    assert {name_of(m): set(m.samples[0].labels) - {"le"} for m in told} == AGREED
    assert [s.labels for m in told if m.name.endswith("tick_timestamp_seconds") for s in m.samples] == [
        {"service": "sweep"}
    ]


def test_what_nobody_knows_is_left_out() -> None:
    """A ledger that is away leaves its gauges without a value, and the counters as they were."""
    told = {name_of(m): [s.value for s in m.samples] for m in families(None, None, None, counted({}))}
    assert set(told) == set(AGREED)
    assert (told["offload_ledger_up"], told["offload_redis_up"], told["offload_jobs"]) == ([0.0], [0.0], [])
    assert told["offload_calls_total"] == [1.0]


def test_a_configuration_begins_with_zeros() -> None:
    """The first event of a series is a rise, which `rate` sees."""
    empty = zeros(REGISTRY)
    empty.add_calls([SimpleNamespace(**CALL)], REGISTRY.models, REGISTRY.categories)
    assert empty.calls["gpu", "small", "offload", "ok"] == 1
    assert empty.ended["expired", "small"] == 0
    assert empty.audits["plain", "disagree"] == 0
    assert zeros(parse("", "the defaults")).stale == {("ollama",): 0}


def test_totals_that_begin_again_count_from_nothing() -> None:
    """A ledger that was restored has lower totals than were seen."""
    assert since({"sweeps": 5}, {"sweeps": 7, "leases": 2}) == {"sweeps": 2, "leases": 2}
    assert since({"sweeps": 5}, {"sweeps": 3}) == {"sweeps": 3}


def test_buckets_hold_their_own_end() -> None:
    """A value on a bucket's end is in it, one beyond all ends in the last; sums are by the end."""
    tally = counted({"queue_ms": 100.0}, {"queue_ms": 101.0}, {"queue_ms": 1e9})
    (told,) = [m for m in families(None, None, None, tally) if m.name == "offload_wait_seconds"]
    by_end = {s.labels["le"]: s.value for s in told.samples if "le" in s.labels}
    assert (by_end["0.1"], by_end["0.5"], by_end["86400.0"], by_end["+Inf"]) == (1, 2, 2, 3)


def test_the_text_is_prometheus() -> None:
    """What is told is read back as it was said."""
    from prometheus_client import CollectorRegistry, generate_latest

    class Fixed:
        def collect(self) -> Any:
            return families(None, None, {"small": 2}, zeros(REGISTRY))

    registry = CollectorRegistry()
    registry.register(Fixed())
    read = {m.name: m for m in text_string_to_metric_families(generate_latest(registry).decode())}
    assert read["offload_queue_messages"].samples[0].value == 2.0
    assert read["offload_wait_seconds"].type == "histogram"
