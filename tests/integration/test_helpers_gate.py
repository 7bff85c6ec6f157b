"""anchor-offload before and beside the call: touches, the health cache, telemetry, privacy, Ctrl-C, what is loaded."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers import ANCHOR, LLM, Home
from tests.support.plain_server import PlainServer, plain_server
from tests.support.pool import simulated
from tests.support.waiting import eventually
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread


@pytest.fixture(scope="module")
def simulator() -> Iterator[BackgroundSimulator]:
    """The module's model server."""
    with in_thread(SimulatorConfig(slots=64, loaded_limit=8)) as made:
        yield made


@pytest.fixture
def home(tmp_path: Path, simulator: BackgroundSimulator) -> Home:
    """A home whose every class the simulator serves."""
    simulator.reset()
    return Home(tmp_path / "home", simulated(simulator.url), in_here=True)


@pytest.fixture
def server() -> Iterator[PlainServer]:
    """A server that remembers probes as well."""
    with plain_server() as made:
        yield made


@pytest.fixture
def plain(tmp_path: Path, server: PlainServer) -> Home:
    """A home whose every class that server serves."""
    return Home(tmp_path / "plain", simulated(server.url), in_here=True)


def test_a_faulty_configuration(home: Home) -> None:
    """One message with the place of the fault, exit 2 from both, and the old plan is not used."""
    assert home.llm("summarize", "x").code == 0
    home.configure({"classes": {"small": {"serv": []}}})
    for ran in (home.llm("summarize", "x"), home.anchor("summarize", "x")):
        assert (ran.code, ran.stdout) == (2, b"")
        assert "serv" in ran.stderr
        assert "Traceback" not in ran.stderr


def test_touches_is_greedy(home: Home) -> None:
    """Every argument after --touches is a path until the next option, so two are more than one file."""
    assert home.anchor("code", "x", "--touches", "a.py", "--for", "agent").code == 0
    ran = home.anchor("code", "x", "--touches", "a.py", "src/auth.py", "--for", "agent")
    assert (ran.code, ran.stderr) == (10, "ESCALATE: touches more than one file; security path\n")
    assert home.anchor("--touches", "a.py", "b.py", "--", "code", "x").code == 10


def test_health_is_looked_at_once_in_a_while(plain: Home, server: PlainServer) -> None:
    """Two gated calls make one probe, and after the cache's time another; a server that went away meanwhile is 12."""
    assert [plain.anchor("classify", "x").code for _ in range(2)] == [0, 0]
    assert server.count("/api/version") == 1
    server.answers["/api/chat"] = 500
    assert plain.anchor("classify", "x").code == 12
    cache = plain.path / "run" / "health.json"
    known = {url: [at - 10.0, healthy] for url, (at, healthy) in json.loads(cache.read_bytes()).items()}
    cache.write_text(json.dumps(known))
    server.answers["/api/version"] = server.answers["/api/tags"] = 500
    assert [plain.anchor("classify", "x").code for _ in range(2)] == [13, 13]
    assert server.count("/api/version") == 2


def test_telemetry_has_a_line_for_every_call(home: Home, tmp_path: Path) -> None:
    """Exactly the contract's keys in their order, whatever became of the call; OFFLOAD_LOG says where."""
    home.anchor("classify", "x")
    home.anchor("merge", "x", "--security")
    home.anchor("extract", "x [[sim:badjson]]", "--json")
    home.anchor("classify", "x [[sim:500]]")
    lines = home.telemetry()
    assert all(list(line) == ["ts", "category", "decision", "reason", "duration_ms", "exit_code"] for line in lines)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line["ts"]) for line in lines)
    assert all(type(line["duration_ms"]) is int and line["duration_ms"] >= 0 for line in lines)
    assert [(line["category"], line["decision"], line["reason"], line["exit_code"]) for line in lines] == [
        ("classify", "offload", "none", 0),
        ("merge", "escalate", "marked as security work; a kind of work that is hard to take back", 10),
        ("extract", "escalate", "JSON validation failed", 11),
        ("classify", "escalate", "llm-offload returned 1", 12),
    ]
    home.environment["OFFLOAD_LOG"] = str(tmp_path / "mine.jsonl")
    assert home.anchor("classify", "x").code == 0
    assert len(home.telemetry()) == 4
    assert (tmp_path / "mine.jsonl").read_bytes().count(b"\n") == 1
    home.environment["OFFLOAD_LOG"] = str(tmp_path)
    ran = home.anchor("classify", "x")
    assert ran.code == 0
    assert "telemetry log cannot be written" in ran.stderr


def test_privacy_holds(plain: Home, server: PlainServer) -> None:
    """A secret, a marked word or a tier of its own keeps a prompt from a server of reach lan: nothing is sent."""
    lan: dict[str, Any] = simulated(server.url, reach="lan")
    lan["privacy"] = {"markers": {"INTERNAL": "local_only"}}
    lan["categories"] = {"rewrite": {"privacy": "local_only"}}
    plain.configure(lan)
    key = "AKIA" + "QWERTYUIOPASDF2Z"
    for arguments in (("summarize", f"deploy with {key}"), ("summarize", "it is INTERNAL"), ("rewrite", "x")):
        ran = plain.llm(*arguments)
        assert (ran.code, ran.stdout) == (1, b"")
        assert ran.stderr == "llm-offload: the prompt is local_only and provider sim is lan; nothing was sent\n"
        assert plain.anchor(*arguments).code == 12
    assert server.count("/api/chat") == 0
    assert plain.llm("summarize", "nothing of note").code == 0
    plain.configure(simulated(server.url))
    assert plain.llm("summarize", f"deploy with {key}").code == 0


@pytest.mark.parametrize("command", [LLM, ANCHOR], ids=["llm-offload", "anchor-offload"])
def test_ctrl_c(home: Home, simulator: BackgroundSimulator, command: str) -> None:
    """Exit 130, no output, no traceback; the gated call has its line."""
    process = home.start(command, "summarize", "x [[sim:delay=600]]")
    eventually(lambda: simulator.stats()["in_flight"] == 1, "the prompt is in flight")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == 130
    assert [line["exit_code"] for line in home.telemetry()] == ([130] if command == ANCHOR else [])


@pytest.mark.parametrize("module", ["raw", "gated"])
def test_the_straight_way_loads_nothing_heavy(home: Home, module: str) -> None:
    """A whole call, from its start to its answer, imports nothing beyond the standard library and our own words."""
    assert home.llm("summarize", "x").code == 0  # the plan is made
    program = (
        f"import sys\nfrom api.helpers import {module}\ncode = {module}.run(['summarize', 'x'])\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "print(code, *sorted(names - sys.stdlib_module_names))"
    )
    done = home.start(sys.executable, "-c", program)
    out, _ = done.communicate(timeout=60)
    code, *foreign = out.decode().splitlines()[-1].split()
    assert code == "0"
    assert {name for name in foreign if not name.startswith("_")} <= {"api", "tasks", "workers", "sitecustomize"}
