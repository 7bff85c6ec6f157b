"""What a call through the HTTP API costs over the same call made straight: milliseconds, nothing asserted.

    python -m tests.bench.direct [--calls 2000] [--at-once 200] [--jobs 20000]

Real Redis, a real worker and beat, `offload api`, the simulator as a process of its own. So many calls at once go
straight to the model server, through a plain proxy (plain_proxy.py) that hands on what it gets, and through the API,
in turns, beside a batch that is running; an overhead is the difference of the quantiles. Milliseconds are the
machine's; how much more than the plain proxy's the API's are is ours. Then one of two servers refuses connections, and
after it a lone one: how long an answer, or a 503, takes once the breaker is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx

from api.embedded.redis_server import free_port
from tests.bench.throughput import say, simulator
from tests.support.api import Api
from tests.support.pool import running, simulated
from tests.support.waiting import eventually

#: seconds that the model takes to answer: of a model that answers at once only the machine's cores would be measured
ANSWER_S = 5.0
#: made once, as it reads the machine's certificates
CONTEXT = ssl.create_default_context()
#: times that each way has its turn
TURNS = 5
#: calls that are timed for each way with a server gone
FAILOVERS = 200


async def ask(clients: Sequence[httpx.AsyncClient], url: str, model: str, calls: int) -> list[float]:
    """Milliseconds of each call, in turns by each client: together so many calls for each."""
    body = {"model": model, "messages": [{"role": "user", "content": f"Hello. [[sim:slow={ANSWER_S}]]"}]}
    took: list[float] = []

    async def one(client: httpx.AsyncClient, nth: int) -> None:
        await asyncio.sleep(ANSWER_S * nth / len(clients))  # 200 people do not ask in one instant
        for _ in range(calls):
            began = time.perf_counter()
            reply = await client.post(f"{url}/v1/chat/completions", json=body)
            reply.raise_for_status()
            took.append((time.perf_counter() - began) * 1000.0)

    await asyncio.gather(*(one(client, nth) for nth, client in enumerate(clients)))
    return took


def shown(name: str, took: list[float]) -> None:
    """The quantiles of one way."""
    cuts = statistics.quantiles(took, n=100)
    say(f"{name:28} p50 {cuts[49]:8.2f} ms   p99 {cuts[98]:8.2f} ms   n {len(took)}")


async def compare(ways: Mapping[str, tuple[str, str]], calls: int, at_once: int) -> None:
    """Every way in turns; the first is what the others' overhead is counted from. ways: name -> (address, model)."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    async with contextlib.AsyncExitStack() as stack:
        # a client with one connection for each: httpx looks through all connections of a client for each request, and
        # with 200 of them that alone would take these cores
        verify = ssl.create_default_context()
        clients = [
            await stack.enter_async_context(httpx.AsyncClient(timeout=120, verify=verify)) for _ in range(at_once)
        ]
        for _ in range(TURNS):
            for name, (url, model) in ways.items():
                found[name] += await ask(clients, url, model, calls // at_once // TURNS)
    for name, took in found.items():
        shown(name, took)
    straight, *others = ((name, statistics.quantiles(took, n=100)) for name, took in found.items())
    for name, cuts in others:
        more = [cuts[n] - straight[1][n] for n in (49, 98)]
        say(f"overhead {name:20} p50 {more[0]:7.2f} ms   p99 {more[1]:8.2f} ms")


@contextmanager
def plain_proxy(server: str) -> Iterator[str]:
    """plain_proxy.py in front of a server; its address."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    process = subprocess.Popen([sys.executable, "-m", "tests.bench.plain_proxy", str(port), server])
    try:
        eventually(lambda: answers(f"{url}/openapi.json"), "the proxy answers")
        yield url
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    """Whether anybody does."""
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def one_by_one(api: Api, model: str, wanted: int) -> list[float]:
    """Milliseconds of calls, from when they are first answered as wanted."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Hello."}]}
    took = []
    with httpx.Client(timeout=30) as client:
        eventually(
            lambda: client.post(f"{api.url}/v1/chat/completions", json=body).status_code == wanted, "it is known"
        )
        for _ in range(FAILOVERS):
            began = time.perf_counter()
            reply = client.post(f"{api.url}/v1/chat/completions", json=body)
            took.append((time.perf_counter() - began) * 1000.0)
            assert reply.status_code == wanted, reply.status_code
    return took


@click.command()
@click.option("--calls", default=2_000, show_default=True, help="Through each way.")
@click.option("--at-once", default=200, show_default=True, help="Calls in flight.")
@click.option("--jobs", default=20_000, show_default=True, help="Of the batch that runs beside them.")
def main(calls: int, at_once: int, jobs: int) -> None:
    """Measure; print."""
    with tempfile.TemporaryDirectory() as folder, simulator() as sim:
        config = simulated(sim.url, in_flight=at_once + 32, kind="openai", interactive=at_once)
        dead = f"http://127.0.0.1:{free_port()}/v1"
        config["providers"] += [{"name": name, "kind": "openai", "url": dead} for name in ("dead", "alone")]
        model = "gemma3:4b"
        pair = [{"provider": "dead", "model": model}, {"provider": "sim", "model": model}]
        config["classes"] |= {"pair": {"serve": pair}, "lone": {"serve": [{"provider": "alone", "model": model}]}}
        config["categories"] = {"pair": {"class": "pair"}, "lone": {"class": "lone"}}
        with running(Path(folder), config, hurry=1) as pool:
            pool.up()
            api = Api(pool)
            batch = pool.submit({"category": "summarize", "prompt": f"Note {i}. [[sim:delay=1]]"} for i in range(jobs))
            eventually(lambda: pool.batch(batch).done > 0, "the batch runs")
            server = sim.url.removesuffix("/v1")
            with plain_proxy(server) as proxy:
                ways = {"straight": (server, model), "plain proxy": (proxy, model), "the API": (api.url, "small")}
                asyncio.run(compare(ways, calls, at_once))
            say(f"of the batch's {jobs} jobs {pool.batch(batch).done} were done meanwhile")
            shown("its server is there", one_by_one(api, "small", 200))
            shown("one of two servers is gone", one_by_one(api, "category:pair", 200))
            shown("a lone server is gone", one_by_one(api, "category:lone", 503))
            pool.cli("cancel", batch)


if __name__ == "__main__":
    main()
