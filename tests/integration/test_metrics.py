"""`offload metrics`: a real exporter of a real pool, scraped by HTTP, on both databases."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from tests.support.cli import executable
from tests.support.pool import Redis, TestPool, running, simulated
from tests.support.ports import free_port
from tests.support.postgres import Postgres
from tests.support.processes import of_folder
from tests.support.waiting import eventually
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

pytestmark = pytest.mark.slow

MARK = "zanzibar"


class Scraper:
    """One exporter, asked by HTTP."""

    def __init__(self, pool: TestPool) -> None:
        self.port = free_port()
        self.process = pool.start("metrics", "--port", str(self.port))
        eventually(self._answers, "the exporter answers", 60)

    def get(self, path: str = "/metrics", accept: str = "text/plain") -> tuple[int, str, str]:
        """Status, type and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path, headers={"Accept": accept})
            answer = connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
        finally:
            connection.close()

    def value(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        families = plain(self.get()[2])
        found = [s for f in families for s in f.samples if s.name == name and labels.items() <= s.labels.items()]
        return sum(s.value for s in found)

    def _answers(self) -> bool:
        try:
            return self.get("/healthz")[0] == 200
        except OSError:
            return False


@pytest.fixture(scope="module")
def simulator() -> Iterator[BackgroundSimulator]:
    with in_thread(SimulatorConfig(slots=64, loaded_limit=8)) as made:
        yield made


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def pool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, simulator: BackgroundSimulator
) -> Iterator[TestPool]:
    """Beat and one worker with a quota."""
    folder = tmp_path_factory.mktemp("metrics")
    config = simulated(simulator.url, limits=[{"unit": "requests", "per": "day", "most": 1000}])
    config["categories"] = {"plain": {"class": "small", "audit": 0, "attempts": 1}}
    server: Postgres | None = request.getfixturevalue("postgres") if request.param == "postgres" else None
    address = None if server is None else server.create("metrics")
    redis = Redis(folder / "redis")
    with running(folder, config, redis=redis, database_url=address) as made:
        yield made
    redis.close()
    if server is not None:
        server.drop("metrics")


@pytest.fixture(scope="module")
def scraper(pool: TestPool) -> Scraper:
    """An exporter that runs before anything else does."""
    return Scraper(pool)


def job(name: str, **fields: Any) -> dict[str, Any]:
    return {"id": name, "category": "plain", "prompt": f"A note of {MARK}.", "app": MARK} | fields


def test_it_serves_before_the_pool_is_there(pool: TestPool, scraper: Scraper) -> None:
    """No ledger, no worker: it answers all the same and says who is away; other paths are 404."""
    assert scraper.get("/healthz") == (200, "text/plain; charset=utf-8", "ok\n")
    assert scraper.get("/")[0] == 404
    assert scraper.value("offload_redis_up") == 1
    if not pool.db.is_postgres:
        return
    assert scraper.value("offload_ledger_up") == 1


def test_a_batch_shows_in_every_family(pool: TestPool, scraper: Scraper) -> None:
    """Done and failed jobs, calls, tokens, times, workers, ticks and quota; nothing of what was said."""
    pool.up()
    eventually(lambda: scraper.value("offload_ledger_up") == 1, "the ledger is there")
    scraper.get()
    batch = pool.submit([*(job(f"j{i}") for i in range(10)), job("bad", prompt=f"[[sim:400]] {MARK}")])
    pool.finished(batch)
    eventually(lambda: scraper.value("offload_jobs_ended_total") == 11, "the jobs are counted")
    assert scraper.value("offload_jobs_ended_total", state="done", model_class="small") == 10
    assert scraper.value("offload_jobs_ended_total", state="failed", model_class="small") == 1
    assert scraper.value("offload_calls_total", provider="sim", outcome="ok") == 10
    assert scraper.value("offload_calls_total", outcome="bad_request") == 1
    assert scraper.value("offload_tokens_total", model="gemma3:4b", direction="out") > 0
    assert scraper.value("offload_duration_seconds_count", provider="sim", model_class="small") == 11
    eventually(lambda: scraper.value("offload_worker_up", provider="sim", node="here") == 1, "the worker is up")
    assert scraper.value("offload_provider_limit") == 8
    # the one that the server turned down counts as well
    assert scraper.value("offload_quota_left_ratio", unit="requests", per="day") == pytest.approx(0.989)
    eventually(lambda: scraper.value("offload_sweeps_total") > 0, "sweeps are counted")
    for service in ("sweep", "audit", "rollup"):
        eventually(
            lambda service=service: scraper.value("offload_last_tick_timestamp_seconds", service=service) > 0,  # type: ignore[misc]
            f"the {service} has run",
        )
    said = scraper.get()[2]
    assert MARK not in said
    assert batch not in said
    assert MARK not in (pool.home.parent / "roles.log").read_text()


def test_both_formats_are_read_back(pool: TestPool, scraper: Scraper) -> None:
    """Prometheus's text and OpenMetrics, each by its own parser, with the same counters."""
    kind, text = scraper.get(accept="application/openmetrics-text; version=1.0.0")[1:]
    assert kind.startswith("application/openmetrics-text")
    read = openmetrics(text)  # type: ignore[no-untyped-call]  # prometheus_client's own omission
    new = {s.name: s.value for f in read for s in f.samples if s.name == "offload_cost_avoided_usd_total"}
    old = {s.name: s.value for f in plain(scraper.get()[2]) for s in f.samples if s.name in new}
    assert new == old


def test_promtool_finds_nothing_to_mend(scraper: Scraper) -> None:
    """Names, units and help texts are as Prometheus's own tool wants them."""
    promtool = shutil.which("promtool")
    if promtool is None and not os.environ.get("CI"):
        pytest.skip("promtool is not installed here (Debian: prometheus)")
    assert promtool is not None
    checked = subprocess.run([promtool, "check", "metrics"], input=scraper.get()[2].encode(), capture_output=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_jobs_that_wait_show_how_long(pool: TestPool, scraper: Scraper) -> None:
    """Without a worker they are queued or sent, and the oldest one's age grows; cancelled they are gone."""
    pool.kill_workers()
    batch = pool.submit([job(f"w{i}") for i in range(40)])
    eventually(
        lambda: (
            scraper.value("offload_jobs", state="queued", model_class="small")
            + scraper.value("offload_jobs", state="dispatched", model_class="small")
            == 40
        ),
        "all of them are shown",
    )
    assert scraper.value("offload_queue_messages", model_class="small") > 0
    eventually(lambda: scraper.value("offload_oldest_due_seconds", model_class="small") > 1, "it waits")
    eventually(lambda: scraper.value("offload_worker_up", provider="sim") == 0, "its worker is gone")
    assert pool.cli("cancel", batch).code == 0
    eventually(lambda: scraper.value("offload_jobs_ended_total", state="cancelled") == 40, "they are cancelled")
    eventually(lambda: scraper.value("offload_jobs", model_class="small") == 0, "nothing waits")
    assert scraper.value("offload_oldest_due_seconds", model_class="small") == 0


def test_a_redis_that_is_away_is_no_fault_of_the_scrape(pool: TestPool, scraper: Scraper) -> None:
    """Killed it is 0, and nothing else is missing; back it is 1."""
    pool.redis.kill()
    eventually(lambda: scraper.value("offload_redis_up") == 0, "it is away")
    assert scraper.get()[0] == 200
    assert scraper.value("offload_ledger_up") == 1
    pool.redis.start()
    eventually(lambda: scraper.value("offload_redis_up") == 1, "it is back")


def test_a_port_that_is_taken_is_named(pool: TestPool, scraper: Scraper) -> None:
    """Exit 1 with the address and the options that choose another."""
    ran = executable(pool.environment, "metrics", "--port", str(scraper.port))
    assert ran.code == 1
    assert f"port {scraper.port}" in ran.stderr
    assert "--port" in ran.stderr


def test_it_ends_in_order(pool: TestPool, scraper: Scraper) -> None:
    """SIGTERM ends it with 0, at once, and nothing of it is left."""
    scraper.process.send_signal(signal.SIGTERM)
    assert scraper.process.wait(10) == 0
    assert scraper.process.pid not in {p.pid for p in of_folder(pool.home)}
