"""A node on a machine of its own loses its cable: the kernel's own black hole, which no proxy can play."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.ledger import reading
from tests.chaos import machine
from tests.chaos.machine import HERE, Machine
from tests.chaos.proxy import Proxy, Wire
from tests.support.nodes import NodeHost
from tests.support.pool import TestPool, running, simulated
from tests.support.ports import free_port
from tests.support.postgres import Postgres
from tests.support.waiting import eventually
from workers.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.skipif(bool(why_not := machine.why_not()), reason=why_not)

#: seconds to the first token of either server
TTFT_S = 0.4


@pytest.fixture
def pool(postgres: Postgres, tmp_path: Path) -> Iterator[TestPool]:
    """Redis, PostgreSQL, beat, and a node `near` with a server of its own."""
    with (
        in_thread(SimulatorConfig(ttft_s=TTFT_S, slots=64)) as near,
        running(tmp_path / "pool", simulated(near.url, 4), database_url=postgres.create("cable")) as made,
    ):
        made.up(node="near")
        yield made
    postgres.drop("cable")


@pytest.fixture
def cable() -> Iterator[Machine]:
    """The machine at the other end."""
    made = Machine()
    yield made
    made.close()


@pytest.fixture
def far(pool: TestPool, cable: Machine, tmp_path: Path) -> Iterator[NodeHost]:
    """A node `far` at the other end, with its own server on its own loopback; it shares two addresses with the pool."""
    wire = Wire()
    ways = [Proxy(wire, pool.environment[f"OFFLOAD_{of}_URL"], host=HERE) for of in ("REDIS", "DATABASE")]
    port = free_port()
    host = NodeHost(tmp_path, "far", simulated(f"http://127.0.0.1:{port}", 4), pool, cable.prefix)
    host.environment |= {"OFFLOAD_REDIS_URL": ways[0].url, "OFFLOAD_DATABASE_URL": ways[1].url}
    host.run("simulate", "--port", str(port), "--ttft-s", str(TTFT_S))
    host.worker()
    yield host
    host.close()
    for way in ways:
        way.close()
    wire.close()


def test_a_node_whose_cable_is_pulled_loses_nothing_and_comes_back(
    pool: TestPool, cable: Machine, far: NodeHost
) -> None:
    """Its jobs are done elsewhere, each once; plugged in it works on or is replaced; late answers change nothing."""
    batch = pool.submit(jobs(60))
    eventually(lambda: _running_on(pool, far) > 0, "it runs jobs")
    cable.pull()
    pulled = pool.finished(batch, 60)
    assert Counter((r["id"], r["state"]) for r in pulled) == {(f"j{i}", "done"): 1 for i in range(60)}
    cable.plug()
    eventually(lambda: _works(pool, far), "it works again", 90)
    assert [_said(r) for r in pool.results(batch)] == [_said(r) for r in pulled]


def jobs(n: int) -> list[dict[str, Any]]:
    """n short jobs."""
    return [{"id": f"j{i}", "category": "summarize", "prompt": f"Note {i} of the day, kept short."} for i in range(n)]


def _said(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "audit"}  # that comes later


def _running_on(pool: TestPool, node: NodeHost) -> int:
    return sum(w.in_flight for w in reading.all_workers(pool.db) if w.name == f"{node.name}/sim")


def _works(pool: TestPool, node: NodeHost) -> bool:
    node.keep()
    return node.name in {r["node"] for r in pool.finished(pool.submit(jobs(16)))}
