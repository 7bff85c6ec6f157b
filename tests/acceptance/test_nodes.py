"""Many nodes: machines that share a Redis and a PostgreSQL and nothing else."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tasks.ledger import claims, endings, nodes, reading
from tasks.ledger.claims import Identity
from tasks.ledger.nodes import Wanted
from tasks.tables import Job
from tests.support.cli import started
from tests.support.nodes import NodeHost
from tests.support.pool import HURRY, TestPool, running, simulated
from tests.support.ports import free_port
from tests.support.postgres import Postgres
from tests.support.waiting import eventually
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

rows = Job.__table__  # type: ignore[attr-defined]

#: what the simulated classes serve
MODELS = {"small": "gemma3:4b", "coder": "qwen2.5-coder:7b", "embed": "bge-m3"}
CATEGORIES = {"small": "summarize", "coder": "comment", "embed": "embed"}

MakeNode = Callable[..., NodeHost]


@pytest.fixture(scope="module")
def shared(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestPool]:
    """Redis, PostgreSQL and beat, on a machine without a model server."""
    folder = tmp_path_factory.mktemp("nodes")
    with running(folder, simulated("http://127.0.0.1:9"), database_url=postgres.create("nodes")) as made:
        made.beat()
        yield made


@pytest.fixture
def pool(shared: TestPool) -> Iterator[TestPool]:
    """The pool, with nothing to do before and after a test."""
    yield shared
    for batch in reading.recent_batches(shared.db, 10):
        endings.cancel(shared.db, batch.id)


@pytest.fixture
def simulators() -> Iterator[tuple[BackgroundSimulator, BackgroundSimulator]]:
    """Two model servers."""
    config = SimulatorConfig(slots=64, loaded_limit=8)
    with in_thread(config) as one, in_thread(config) as other:
        yield one, other


@pytest.fixture
def node(pool: TestPool, tmp_path: Path) -> Iterator[MakeNode]:
    """Makes nodes: name, the URL of its model server, fields of its provider."""
    made: list[NodeHost] = []

    def make(name: str, url: str, **provider: Any) -> NodeHost:
        made.append(NodeHost(tmp_path, name, simulated(url, **provider), pool))
        return made[-1]

    yield make
    for one in made:
        one.close()


def jobs(n: int, *classes: str) -> list[dict[str, Any]]:
    """n jobs, of each class in turn."""
    lines = []
    for i in range(n):
        model_class = (classes or ("small",))[i % max(1, len(classes))]
        asks = "input" if model_class == "embed" else "prompt"
        lines.append({"id": f"j{i}", "category": CATEGORIES[model_class], asks: f"Note {i} of the day, kept short."})
    return lines


def assert_each_once(results: list[dict[str, Any]], n: int) -> None:
    """Every job has one result, and it is an answer."""
    assert Counter(r["id"] for r in results) == Counter({f"j{i}": 1 for i in range(n)})
    assert {r["state"] for r in results} == {"done"}


def asked(simulator: BackgroundSimulator) -> Counter[str]:
    """The calls a model server got, by model; being told to unload is none."""
    return Counter(c["model"] for c in simulator.calls(10_000) if c["tokens_in"] or c["closed"])


def test_a_node_that_appears_takes_part_and_one_that_dies_is_noticed(
    pool: TestPool, node: MakeNode, simulators: tuple[BackgroundSimulator, BackgroundSimulator]
) -> None:
    """A second node joins a running batch; killed with calls in flight, it is `gone` in time and its jobs move."""
    for simulator in simulators:
        simulator.configure(ttft_s=1.0)
    first, second = (node(f"gpu{i + 1}", simulator.url, in_flight=2) for i, simulator in enumerate(simulators))
    first.worker()
    batch = pool.submit(jobs(120))  # a minute's work for one: time to start the other on a busy machine
    eventually(lambda: pool.batch(batch).done >= 2, "the first node works")
    lost = second.worker()
    eventually(lambda: "gpu2" in _nodes_of(pool, batch), "the second node takes part")
    eventually(lambda: simulators[1].stats()["in_flight"] == 2, "its next calls run")
    os.kill(lost.pid, signal.SIGKILL)
    assert pool.batch(batch).open > 8, "it must have joined, and died, in the middle"
    simulators[0].configure(ttft_s=0.01)
    eventually(lambda: "gpu2" in _gone(first), "the node is noticed to be gone", 45 / HURRY + 10)
    results = pool.finished(batch)
    assert_each_once(results, 120)
    assert {r["node"] for r in results} == {"gpu1", "gpu2"}
    assert asked(simulators[0]).total() + asked(simulators[1]).total() <= 120 + 4, "only what it had in hand"


def _nodes_of(pool: TestPool, batch: str) -> set[str]:
    return {result["node"] for result in pool.results(batch)}


def _jobs(pool: TestPool, batch: str) -> list[Any]:
    with pool.db.read() as c:
        return list(c.execute(select(rows).where(rows.c.batch_id == batch)).all())


def _gone(node: NodeHost) -> set[str]:
    shown = node.cli("nodes", "--json").json
    return {w["node"] for w in shown["workers"] if w["gone"]}


def test_a_class_never_reaches_a_server_that_is_not_pinned_to_it(
    pool: TestPool, node: MakeNode, simulators: tuple[BackgroundSimulator, BackgroundSimulator]
) -> None:
    """`--serves` pins: by the servers' own logs, each got its worker's classes and nothing else."""
    node("gpu3", simulators[0].url).worker("--serves", "small")
    node("gpu4", simulators[1].url).worker("--serves", "coder,embed")
    batch = pool.submit(jobs(90, "small", "coder", "embed"))
    assert_each_once(pool.finished(batch), 90)
    assert asked(simulators[0]) == {MODELS["small"]: 30}
    assert asked(simulators[1]) == {MODELS["coder"]: 30, MODELS["embed"]: 30}


def test_a_drained_node_finishes_unloads_and_leaves_its_jobs_to_others(
    pool: TestPool, node: MakeNode, simulators: tuple[BackgroundSimulator, BackgroundSimulator]
) -> None:
    """drain: what runs ends by itself, nothing new comes, models go, the worker lives; resume ends it."""
    here, there = simulators
    busy, other = node("gpu5", here.url), node("gpu6", there.url)
    process = busy.worker("--serves", "small,embed")
    pool.finished(pool.submit(jobs(4, "embed")))
    here.configure(ttft_s=1.0)
    batch = pool.submit(jobs(100))
    eventually(lambda: pool.batch(batch).done >= 8, "it is busy")
    assert set(here.stats()["loaded"]) == {MODELS["small"], MODELS["embed"]}
    drained = busy.cli("drain", "gpu5", "--timeout", "60")
    assert drained.code == 0, drained.stderr
    assert here.stats()["loaded"] == []
    assert here.stats()["closed"] == 0, "what ran has ended by itself"
    assert process.poll() is None
    left, calls = pool.batch(batch).open, asked(here)
    assert left > 0, "the drain must hit work in flight"
    assert not any(job.state == "running" for job in _jobs(pool, batch))
    shown = busy.cli("nodes", "--json").json["workers"]
    (row,) = (w for w in shown if w["node"] == "gpu5")
    assert (row["phase"], row["wanted"], row["in_flight"], row["gone"]) == ("drained", "drained", 0, False)
    other.worker()
    results = pool.finished(batch)
    assert_each_once(results, 100)
    assert {r["attempts"] for r in results} == {1}
    assert asked(here) == calls, "it got nothing new"
    assert asked(there) == {MODELS["small"]: left}, "the other got what was left, once"
    other.stop_workers()
    batch = pool.submit(jobs(10))
    assert pool.cli("resume", "gpu5").code == 0
    here.configure(ttft_s=0.0)
    assert {r["node"] for r in pool.finished(batch)} == {"gpu5"}


#: starts a simulator, ends it, or says whether it is there; prints what nobody may see
SERVER = """
import os, subprocess, sys
what, port, pid_file, root = sys.argv[1:]
print("a secret")
if what == "start":
    command = [sys.executable, "-m", "api", "simulate", "--port", port]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    open(pid_file, "w").write(str(process.pid))
elif os.path.exists(pid_file + ".broken"):
    sys.exit(3)
else:
    os.kill(int(open(pid_file).read()), 0 if what == "status" else 9)
"""


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The commands of a model server that does not run yet, and its url."""
    script, port, pid = tmp_path / "server.py", free_port(), tmp_path / "pid"
    script.write_text(SERVER)
    more = (str(port), str(pid), str(Path(__file__).parents[2]))
    named = {name: [sys.executable, str(script), name, *more] for name in ("start", "stop", "status")}
    yield {"url": f"http://127.0.0.1:{port}", **named}
    with suppress(OSError, ValueError):
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_a_node_is_stopped_and_started_by_its_own_commands(
    pool: TestPool, node: MakeNode, commands: dict[str, Any], tmp_path: Path
) -> None:
    """stop drains, then runs `stop`; start runs `start` and waits; what fails is named; a wish outlasts the worker."""
    gpu = node("gpu7", **commands)
    unknown = gpu.cli("nodes", "start", "gpu7")
    assert unknown.code == 5
    assert "there is no node 'gpu7'; there are: " in unknown.stderr
    nodes.want(pool.db, "gpu7", Wanted.SERVING)
    gpu.worker()  # its server did not run
    assert len(pool.finished(pool.submit(jobs(8)))) == 8

    broken = tmp_path / "pid.broken"
    broken.touch()
    failed = gpu.cli("nodes", "stop", "gpu7", "--timeout", "60")
    assert failed.code == 1
    assert failed.stderr.endswith("gpu7/sim: `stop` of provider sim ended with status 3\n")
    assert _phase(gpu) == ("drained", "stopped")
    broken.unlink()
    stopped = gpu.cli("nodes", "stop", "gpu7", "--timeout", "60")
    assert (stopped.code, _phase(gpu)) == (0, ("stopped", "stopped")), stopped.stderr
    assert _refuses(commands["url"])

    batch = pool.submit(jobs(8))
    assert gpu.cli("nodes", "start", "gpu7", "--timeout", "60").code == 0
    assert len(pool.finished(batch)) == 8

    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # it dies by itself
    batch = pool.submit(jobs(8))
    eventually(lambda: _worker(gpu)["health"] == "offline", "the worker notices")
    assert gpu.cli("nodes", "start", "gpu7", "--timeout", "60").code == 0
    assert len(pool.finished(batch)) == 8

    gpu.stop_workers()
    nobody = gpu.cli("nodes", "stop", "gpu7")
    assert nobody.code == 1
    assert "no worker of gpu7 is alive" in nobody.stderr
    gpu.worker(phase="stopped")
    assert _refuses(commands["url"])
    assert b"secret" not in gpu.log.read_bytes()


def test_a_drain_that_takes_long_is_left_to_itself(pool: TestPool, tmp_path: Path) -> None:
    """--no-wait, a --timeout (exit 4) and Ctrl-C (130) leave the drain on and say how to come back."""
    me = Identity("gpu8", "sim", "run", os.getpid())  # a worker that never gets there

    def alive() -> None:
        claims.register(pool.db, me, ["small"], 8)

    alive()
    assert pool.cli("drain", "gpu8", "--no-wait").code == 0
    late = pool.cli("drain", "gpu8", "--timeout", "0.1", "--json")
    assert (late.code, [w["phase"] for w in late.json]) == (4, ["serving"])
    assert "sim is serving, 0 in flight; it goes on" in late.stderr
    before = nodes.wish(pool.db, "gpu8")
    said = tmp_path / "said"
    with said.open("wb") as file:
        interrupted = started(pool.environment, "drain", "gpu8", stderr=file)

    def shows() -> bool:
        alive()
        return "gpu8: " in said.read_text()

    eventually(shows, "it shows how far it is")
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait(30) == 130, said.read_text()
    assert "gpu8 is drained as soon as it can; look with: offload nodes" in said.read_text()
    assert nodes.wish(pool.db, "gpu8").at > before.at
    shown = pool.cli("nodes").text.splitlines()
    assert shown[0].split() == ["node", "provider", "classes", "in", "flight", "of", "heartbeat", "phase", "health"]
    assert any(line.split()[:5] == ["gpu8", "sim", "small", "0", "8"] for line in shown)


def _worker(gpu: NodeHost) -> dict[str, Any]:
    (row,) = (w for w in gpu.cli("nodes", "--json").json["workers"] if w["node"] == gpu.name)
    return dict(row)


def _phase(gpu: NodeHost) -> tuple[str, str]:
    row = _worker(gpu)
    return row["phase"], row["wanted"]


def _refuses(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=2).close()
    except ConnectionRefusedError:
        return True
    return False
