"""Slots, loading, eviction, the call log, the control routes and the command."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from tasks.errors import UsageError
from workers.simulator import BackgroundSimulator, ModelSpec, SimulatorConfig, in_thread, start
from workers.simulator.cli import command

ROOT = Path(__file__).parents[2]
#: a chat that takes its slot and never ends
STALLS = {"model": "gemma3:4b", "messages": [{"role": "user", "content": "[[sim:stall]]"}]}


@pytest.fixture
def sim() -> Iterator[BackgroundSimulator]:
    """A simulator with default settings."""
    with in_thread() as running:
        yield running


def until(predicate: Callable[[], bool]) -> None:
    """Wait for a predicate, 10 s at most."""
    end = time.monotonic() + 10
    while not predicate():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


def chat(sim: BackgroundSimulator, text: str = "hello", model: str = "gemma3:4b", **fields: Any) -> httpx.Response:
    """One whole chat by Ollama's route."""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": False, **fields}
    return httpx.post(f"{sim.url}/api/chat", json=body, timeout=30)


def test_slots_bound_what_is_served_at_once(sim: BackgroundSimulator) -> None:
    """No more than `slots` are served; the others wait, and all are answered."""
    sim.configure(slots=2)
    with ThreadPoolExecutor(6) as threads, httpx.Client() as other, ExitStack() as served:
        for _ in range(2):
            served.enter_context(other.stream("POST", f"{sim.url}/api/chat", json=STALLS))
        replies = [threads.submit(chat, sim, str(n)) for n in range(6)]
        until(lambda: sim.stats()["waiting"] == 6)
        served.close()
        assert [reply.result(timeout=30).status_code for reply in replies] == [200] * 6
    stats = sim.stats()
    assert stats["max_serving"] == 2
    assert stats["max_in_flight"] == 8
    assert (stats["in_flight"], stats["waiting"]) == (0, 0)


def test_more_slots_let_waiting_requests_in(sim: BackgroundSimulator) -> None:
    """Slots added while the server runs are used by those that wait."""
    sim.configure(slots=1)
    with (
        ThreadPoolExecutor(2) as threads,
        httpx.Client() as other,
        other.stream("POST", f"{sim.url}/api/chat", json=STALLS),
    ):
        waiting = threads.submit(chat, sim)
        until(lambda: sim.stats()["waiting"] == 1)
        sim.configure(slots=2)
        assert waiting.result(timeout=30).status_code == 200


def test_a_waiting_client_that_goes_leaves_the_queue(sim: BackgroundSimulator) -> None:
    """Who gives up in the queue is logged closed and takes no slot later."""
    sim.configure(slots=1)
    with httpx.Client() as other, other.stream("POST", f"{sim.url}/api/chat", json=STALLS):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{sim.url}/api/chat", json=STALLS, timeout=0.2)
        until(lambda: sim.stats()["waiting"] == 0)
        assert sim.stats()["serving"] == 1
    until(lambda: sim.stats()["serving"] == 0)
    assert sim.stats()["closed"] == 2


def test_each_model_is_loaded_once(sim: BackgroundSimulator) -> None:
    """Many requests for a few models load each of them once."""
    names = ["gemma3:4b", "qwen2.5-coder:7b", "gemma4:31b"]
    sim.configure(load_s=0.05)
    with ThreadPoolExecutor(12) as threads:
        assert all(r.status_code == 200 for r in threads.map(lambda n: chat(sim, model=names[n % 3]), range(24)))
    assert sim.stats()["loads"] == dict.fromkeys(names, 1)
    assert sorted(sim.stats()["loaded"]) == sorted(names)


def test_the_least_recently_used_idle_model_is_evicted(sim: BackgroundSimulator) -> None:
    """Beyond loaded_limit the model used longest ago makes room."""
    sim.configure(loaded_limit=2)
    for name in ("gemma3:4b", "gemma4:31b", "gemma3:4b", "qwen3-coder:30b"):
        chat(sim, model=name)
    stats = sim.stats()
    assert stats["loaded"] == ["gemma3:4b", "qwen3-coder:30b"]
    assert (stats["loads_total"], stats["evictions"]) == (3, 1)


def test_a_load_waits_until_a_model_is_idle(sim: BackgroundSimulator) -> None:
    """A busy model is not evicted: the load waits for it, and goes on when its client has gone."""
    sim.configure(loaded_limit=1)
    with ThreadPoolExecutor(1) as threads, httpx.Client() as other:
        with other.stream("POST", f"{sim.url}/api/chat", json=STALLS):
            waiting = threads.submit(chat, sim, model="gemma4:31b")
            until(lambda: sim.stats()["serving"] == 2)
            assert sim.stats()["loaded"] == ["gemma3:4b"]
        assert waiting.result(timeout=30).status_code == 200
    assert sim.stats()["loaded"] == ["gemma4:31b"]


def test_the_load_is_part_of_the_answer_time(sim: BackgroundSimulator) -> None:
    """The first request waits for the load, says so, and the second does not."""
    sim.configure(load_s=0.2)
    first, second = chat(sim).json(), chat(sim).json()
    assert first["load_duration"] >= 0.2e9
    assert second["load_duration"] < first["load_duration"]


def test_speed_paces_a_stream(sim: BackgroundSimulator) -> None:
    """With a speed the pieces come one after the other, about a token each."""
    sim.configure(tokens_per_s=100)
    body = {"model": "gemma3:4b", "messages": [{"role": "user", "content": "hello"}]}
    lines: list[tuple[float, dict[str, Any]]] = []
    with httpx.stream("POST", f"{sim.url}/api/chat", json=body, timeout=30) as reply:
        lines.extend((time.monotonic(), json.loads(line)) for line in reply.iter_lines())
    tokens = lines[-1][1]["eval_count"]
    assert len(lines) >= tokens
    assert lines[-1][0] - lines[0][0] > 0.5 * tokens / 100


def test_the_log_has_hashes_and_no_text(sim: BackgroundSimulator, tmp_path: Path) -> None:
    """A call's record carries ids, sizes and a hash, in memory and in the file, and never the prompt."""
    path = tmp_path / "calls.jsonl"
    sim.configure(call_log=str(path))
    body = {"model": "gemma3:4b", "messages": [{"role": "user", "content": "a secret"}], "stream": False}
    headers = {"X-Offload-Job": "job-1", "X-Request-Id": "r-1"}
    httpx.post(f"{sim.url}/api/chat", json=body, headers=headers)
    until(lambda: path.exists() and path.read_text().endswith("\n"))
    for record in (sim.calls()[-1], json.loads(path.read_text())):
        assert (record["job"], record["request_id"], record["status"]) == ("job-1", "r-1", 200)
        assert record["prompt"] == sha256(b"a secret").hexdigest()[:16]
        assert record["tokens_out"] > 0
        assert record["ms"] > 0
        assert "secret" not in str(record)


def test_control_routes(sim: BackgroundSimulator) -> None:
    """Over HTTP the same numbers are read, fields changed and everything reset."""
    assert httpx.post(f"{sim.url}/sim/config", json={"slots": 3, "faults": {"500": 1}}).json()["slots"] == 3
    assert chat(sim).status_code == 500
    assert httpx.get(f"{sim.url}/sim/stats").json()["statuses"] == {"500": 1}
    assert len(httpx.get(f"{sim.url}/sim/calls?limit=1").json()["calls"]) == 1
    assert httpx.post(f"{sim.url}/sim/reset").status_code == 200
    assert httpx.get(f"{sim.url}/sim/stats").json()["requests"] == 0
    assert chat(sim).status_code == 200


@pytest.mark.parametrize("patch", [{"slot": 3}, {"slots": 0}, {"faults": {"nope": 1}}, {"faults": {"500": 2}}, [], 7])
def test_a_bad_configuration_is_refused(sim: BackgroundSimulator, patch: Any) -> None:
    """An unknown field or an impossible value is a 400, and nothing changes."""
    assert httpx.post(f"{sim.url}/sim/config", json=patch).status_code == 400
    assert chat(sim).status_code == 200


def test_only_the_protocols_asked_for() -> None:
    """A server that speaks one protocol knows no route of the others."""
    with in_thread(SimulatorConfig(protocols=("openai",))) as sim:
        assert httpx.get(f"{sim.url}/health").status_code == 200
        assert httpx.get(f"{sim.url}/api/tags").status_code == 404
        assert httpx.get(sim.url).status_code == 404


def test_malformed_bodies_are_400(sim: BackgroundSimulator) -> None:
    """What is no JSON, no object, or of wrong types is a 400, never a 500."""
    bodies: list[bytes] = [b"{", b"[]", b"7", b'{"model":"gemma3:4b","messages":[7]}',
                           b'{"model":"gemma3:4b","messages":[{}],"options":{"num_ctx":"x"}}']  # fmt: skip
    assert [httpx.post(f"{sim.url}/api/chat", content=body).status_code for body in bodies] == [400] * 5


def test_stopping_ends_requests_that_hang() -> None:
    """`stop` closes every connection at once, and may be called twice."""

    async def scenario() -> None:
        running = await start(SimulatorConfig(models={"m": ModelSpec()}))
        body = {"model": "m", "messages": [{"role": "user", "content": "[[sim:hang]]"}]}
        async with httpx.AsyncClient(timeout=30) as client:
            asking = asyncio.create_task(client.post(f"{running.url}/api/chat", json=body))
            while running.stats()["serving"] == 0:
                await asyncio.sleep(0.005)
            await asyncio.wait_for(running.stop(), 5)
            with pytest.raises(httpx.HTTPError):
                await asking
        await running.stop()

    asyncio.run(scenario())


def test_a_port_in_use_is_a_usage_error(sim: BackgroundSimulator) -> None:
    """A second simulator on one port says so, in process and as a command with exit 2."""
    with pytest.raises(UsageError, match="in use"), in_thread(port=sim.port):
        pass
    result = CliRunner().invoke(command, ["--port", str(sim.port)])
    assert result.exit_code == 2
    assert "in use" in result.output


@pytest.mark.parametrize(
    "arguments", [["--fault", "500"], ["--fault", "x:1"], ["--slots", "0"], ["--model", "m,what=1"]]
)
def test_bad_options_exit_2(arguments: list[str]) -> None:
    """An option that makes no sense ends with exit 2 before anything listens."""
    assert CliRunner().invoke(command, ["--port", "0", *arguments]).exit_code == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    """The command tells its address on stderr, takes its options, and ends well on a signal."""
    log = tmp_path / "calls.jsonl"
    options = ["--port", "0", "--model", "m,thinking,context=99", "--fault", "503=4:1", "--slots", "2",
               "--call-log", str(log)]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "workers.simulator", *options], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline().strip()
            assert said.startswith("simulator listening on http://127.0.0.1:")
            url = said.rsplit(" ", 1)[1]
            reply = httpx.post(f"{url}/api/chat", json={"model": "m", "messages": [{"role": "user", "content": "x"}]})
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "4")
            assert httpx.get(f"{url}/sim/config").json()["models"]["m"]["context"] == 99
            process.send_signal(number)
            assert process.wait(timeout=10) == 0
        finally:
            process.kill()
    assert json.loads(log.read_text())["status"] == 503


def test_the_socket_answers_at_once(sim: BackgroundSimulator) -> None:
    """Two requests sent together on one connection are answered in turn."""
    with socket.create_connection(("127.0.0.1", sim.port), timeout=10) as connection:
        connection.sendall(b"GET /api/version HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        got = b""
        while got.count(b'"version"') < 2:
            part = connection.recv(65536)
            assert part
            got += part
