"""What leaves, seen on sockets: real workers, a tap in front of a server in every reach, a canary in every prompt."""

from __future__ import annotations

import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tasks.ledger import audits, reading
from tasks.privacy import Reach, Tier, permits, reach_of_address
from tests.support.pool import TestPool, running
from tests.support.taps import Redirector, Tap
from tests.support.waiting import eventually
from workers.simulator import SimulatorConfig, in_thread

#: seconds that jobs which must go nowhere are given to go somewhere
DEADLINE_S = 5.0
SECRET = "AKIA" + "QX7T2M4BV6Z3W5K2"
MAIL = "jo.doe@acme-corp.com"

SHAPE = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}

#: a program that sends its prompt to the address in its environment, as an agent sends it to its cloud
AGENT = """#!{python}
import os, socket, sys, urllib.parse
to = urllib.parse.urlsplit(os.environ["AGENT_TAP"])
with socket.create_connection((to.hostname, to.port)) as cloud:
    cloud.sendall(sys.stdin.buffer.read())
print("An answer by an agent, which says enough to pass.")
"""

CLASSES = {"near": Reach.LOCAL, "net": Reach.LAN, "cloud": Reach.CLOUD, "agents": Reach.CLOUD}


class Net:
    """The taps of one test: one for each way that a prompt could take."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.answers = stack.enter_context(in_thread(SimulatorConfig(slots=64, loaded_limit=8)))
        self.spoils = stack.enter_context(in_thread(SimulatorConfig(slots=64, faults={"badjson": 1.0})))
        behind = {"near": self.answers.url, "net": self.answers.url, "cloud": self.answers.url}
        self.taps = {name: Tap(url) for name, url in behind.items()}
        self.taps["spoilt"] = Tap(self.spoils.url)
        self.taps["agents"] = Tap()
        self.taps["proxy"] = Tap()
        self.taps["redirected"] = Tap(self.answers.url)
        for tap in self.taps.values():
            stack.callback(tap.close)
        self.redirector = Redirector(self.taps["redirected"].url)
        stack.callback(self.redirector.close)
        self.agent = folder / "agent.py"
        self.agent.write_text(AGENT.format(python=sys.executable))
        self.agent.chmod(self.agent.stat().st_mode | stat.S_IXUSR)

    def url(self, name: str) -> str:
        return self.taps[name].url

    def saw(self, name: str, canary: str) -> bool:
        """Whether a tap got the canary."""
        return canary.encode() in self.taps[name].taken

    def config(self) -> dict[str, Any]:
        """A provider in every reach, each class served by one; failures and audits go to the cloud where they may."""
        model = "gemma3:4b"
        providers = [
            {"name": "near", "kind": "ollama", "url": self.url("near")},
            {"name": "net", "kind": "openai", "url": self.url("net") + "/v1", "reach": "lan"},
            {"name": "spoilt", "kind": "ollama", "url": self.url("spoilt")},
            {"name": "turned", "kind": "ollama", "url": self.redirector.url},
            {"name": "claude", "kind": "anthropic", "url": self.url("cloud"), "api_key_env": "CLOUD_KEY"},
            {"name": "agent", "kind": "command", "command": [str(self.agent)]},
        ]
        classes = {
            "near": [("near", model)],
            "net": [("net", model)],
            "spoilt": [("spoilt", model)],
            "turned": [("turned", model)],
            "cloud": [("claude", "claude-sim")],
            "agents": [("agent", "agent-1")],
        }
        category = {"check": "not_empty", "audit": 1.0, "on_failure": "escalate"}
        return {
            "providers": providers,
            "classes": {n: {"serve": [{"provider": p, "model": m} for p, m in s]} for n, s in classes.items()},
            "categories": {
                **{f"to-{n}": category | {"class": n} for n in ("near", "net", "turned", "agents", "cloud")},
                "to-spoilt": category | {"class": "spoilt", "json": True, "attempts": 1},
            },
        }


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    """Every way out, tapped."""
    with ExitStack() as stack:
        yield Net(stack, tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def pool(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestPool]:
    """A worker of every provider, with proxies in the environment that would like to see everything."""
    proxy = net.url("proxy")
    proxies = {name: proxy for n in ("http_proxy", "https_proxy", "all_proxy") for name in (n, n.upper())}
    with running(tmp_path_factory.mktemp("pool"), net.config()) as made:
        made.environment |= proxies | {"AGENT_TAP": net.url("agents")}
        made.start("beat")
        processes = {
            name: made.start(
                "worker", "--provider", name, "--node", "here", **({"CLOUD_KEY": "k"} if name == "claude" else {})
            )
            for name in ("near", "net", "spoilt", "turned", "claude", "agent")
        }
        for name in processes:
            eventually(lambda name=name: _is_well(made, name), f"{name} takes work", 60)  # type: ignore[misc]
        yield made


def _is_well(pool: TestPool, provider: str) -> bool:
    return any(w.provider == provider and w.health == "healthy" for w in reading.all_workers(pool.db))


def _jobs() -> Iterator[tuple[dict[str, Any], Tier]]:
    """Jobs of every tier, said or found, to every class; each with the tier it comes to."""
    said: list[tuple[str, dict[str, Any], str, Tier]] = [
        ("unsaid", {}, "", Tier.LAN_OK),
        ("local", {"privacy": "local_only"}, "", Tier.LOCAL_ONLY),
        ("lan", {"privacy": "lan_ok"}, "", Tier.LAN_OK),
        ("cloud", {"privacy": "cloud_ok"}, "", Tier.CLOUD_OK),
        ("secret", {"privacy": "cloud_ok"}, SECRET, Tier.LOCAL_ONLY),
        ("mail", {"privacy": "cloud_ok"}, MAIL, Tier.LAN_OK),
        ("path", {"privacy": "cloud_ok", "touches": ["deploy/.env"]}, "", Tier.LOCAL_ONLY),
        ("flag", {"privacy": "lan_ok", "security": True}, "", Tier.LAN_OK),
        ("leaves", {"privacy": "cloud_ok", "security": True}, "", Tier.CLOUD_OK),
    ]
    for where in ("near", "net", "spoilt", "turned", "agents", "cloud"):
        for name, fields, more, tier in said:
            canary = f"canary-{where}-{name}-x"
            job = {"id": canary, "category": f"to-{where}", "prompt": f"Say something of {canary}. {more}", **fields}
            yield job | ({"schema": SHAPE} if where == "spoilt" else {}), tier


@pytest.fixture(scope="module")
def results(pool: TestPool) -> dict[str, dict[str, Any]]:
    """What became of all of them, once every audit is answered as well."""
    nowhere = [job for job, tier in _jobs() if job["category"] == "to-net" and tier is Tier.LOCAL_ONLY]
    batches = [
        pool.submit([job for job, _ in _jobs() if job not in nowhere]),
        pool.submit(nowhere, deadline=DEADLINE_S),
    ]
    found = {r["id"]: r for batch in batches for r in pool.finished(batch, 60)}
    eventually(lambda: set(audits.counted(pool.db)) <= {"agree", "disagree", "unsure", "person"}, "all is audited", 60)
    return found


def test_no_prompt_passes_its_reach(net: Net, results: dict[str, dict[str, Any]]) -> None:
    """Whatever is configured, fails, is redirected, proxied or audited: a canary goes only where its tier lets it."""
    for job, tier in _jobs():
        assert results[job["id"]]["privacy"] == tier, job["id"]
        for tap, reach in (("near", Reach.LOCAL), ("net", Reach.LAN), ("cloud", Reach.CLOUD), ("agents", Reach.CLOUD)):
            assert permits(tier, reach) or not net.saw(tap, job["id"]), (job["id"], tap)
        assert not net.saw("proxy", job["id"])
        assert not net.saw("redirected", job["id"])
    # the taps do see what may pass: by its own class, escalated, after a failure, as an audit
    assert net.saw("near", "canary-near-local-x")
    assert net.saw("net", "canary-net-unsaid-x")
    assert net.saw("cloud", "canary-cloud-cloud-x")
    assert net.saw("agents", "canary-agents-cloud-x")
    assert net.saw("cloud", "canary-near-leaves-x")
    assert net.saw("cloud", "canary-spoilt-cloud-x")
    assert net.saw("cloud", "canary-near-cloud-x"), "its audit"
    assert net.taps["proxy"].connections == 0


def test_what_became_of_them(results: dict[str, dict[str, Any]]) -> None:
    """Private work without a server at home expires saying so, work for the cloud that may not leave is refused."""
    named = {canary.removeprefix("canary-").removesuffix("-x"): r for canary, r in results.items()}
    wanted = {
        "net-local": "expired",
        "near-flag": "refused",
        "near-path": "refused",
        "agents-unsaid": "refused",
        "near-leaves": "escalated",
        "spoilt-cloud": "escalated",
        "spoilt-unsaid": "failed",
        "cloud-cloud": "escalated",
        "agents-cloud": "escalated",
    }
    assert {name: named[name]["state"] for name in wanted} == wanted
    assert named["net-local"]["error"]["code"] == "no_local_server"
    assert named["spoilt-cloud"]["escalated"]["from"] == "spoilt"
    assert {r["id"] for r in named["near-path"]["verdict"]["reasons"]} == {"security-path", "privacy"}


def _outside() -> str:
    """An address of this machine that is not loopback, else one that is nobody's (RFC 5737)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            own = str(probe.getsockname()[0])
        except OSError:
            own = "127.0.0.1"
    return own if reach_of_address(own) is not Reach.LOCAL else "192.0.2.1"


def test_a_name_that_leads_out_of_reach_leads_nowhere(tmp_path: Path) -> None:
    """A provider declared local whose name resolves to another address gets no connection, and doctor says why."""
    address = _outside()
    tap = Tap(host=address) if address != "192.0.2.1" else Tap()
    name = "0x" + socket.inet_aton(address).hex()  # resolvers take it for an address, and nothing else does
    url = f"http://{name}:{tap.url.rpartition(':')[2]}"
    config = {
        "providers": [{"name": "near", "kind": "ollama", "url": url, "reach": "local"}],
        "classes": {"small": {"serve": [{"provider": "near", "model": "m"}]}},
    }
    with running(tmp_path, config) as pool:
        pool.start("beat")
        pool.start("worker", "--provider", "near", "--node", "here")
        batch = pool.submit([{"category": "summarize", "prompt": "canary"}], deadline=3.0)
        assert pool.finished(batch)[0]["state"] == "expired"
        eventually(lambda: "beyond the reach" in pool.cli("doctor").text, "doctor says why")
    assert tap.connections == 0
    tap.close()


@pytest.mark.parametrize("variable", ["ANTHROPIC_API_KEY", "CLOUD_KEY"])
def test_a_worker_at_home_refuses_a_clouds_key(net: Net, tmp_path: Path, variable: str) -> None:
    """A GPU worker does not start with a cloud's key in its environment, unless told that it is meant."""
    with running(tmp_path / "pool", net.config()) as pool:
        process = pool.start("worker", "--provider", "near", **{variable: "sk-private"})
        assert process.wait(timeout=60) == 2
        said = pool.log.read_text()
        assert variable in said
        assert "--allow-cloud-key" in said
        assert "sk-private" not in said
        told = pool.start("worker", "--provider", "near", "--node", "here", "--allow-cloud-key", **{variable: "k"})
        eventually(lambda: _is_well(pool, "near"), "it starts when told", 60)
        told.terminate()
