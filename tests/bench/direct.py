"""What a call through the HTTP API costs over the same call made straight: milliseconds, nothing asserted.

    python -m tests.bench.direct [--calls 2000] [--at-once 200] [--jobs 20000]

Real Redis, a real worker and beat, `offload api`, the simulator as a process of its own. So many calls at once go
through the API and straight to the model server, in turns, beside a batch that is running; the overhead is the
difference of the quantiles. Then one of two servers refuses connections, and after it a lone one: how long an answer,
or a 503, takes once the breaker is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import statistics
import tempfile
import time
from collections.abc import Sequence
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
ANSWER_S = 2.0
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


async def compare(straight: str, api: str, calls: int, at_once: int) -> None:
    """Both ways in turns."""
    found: dict[str, list[float]] = {"straight": [], "through the API": []}
    async with contextlib.AsyncExitStack() as stack:
        # a client with one connection for each: httpx looks through all connections of a client for each request, and
        # with 200 of them that alone would take these cores
        verify = ssl.create_default_context()
        clients = [
            await stack.enter_async_context(httpx.AsyncClient(timeout=120, verify=verify)) for _ in range(at_once)
        ]
        for _ in range(TURNS):
            found["straight"] += await ask(clients, straight, "gemma3:4b", calls // at_once // TURNS)
            found["through the API"] += await ask(clients, api, "small", calls // at_once // TURNS)
    for name, took in found.items():
        shown(name, took)
    mine, theirs = (statistics.quantiles(found[name], n=100) for name in ("through the API", "straight"))
    say(f"overhead                     p50 {mine[49] - theirs[49]:8.2f} ms   p99 {mine[98] - theirs[98]:8.2f} ms")


def refused(api: Api, model: str, wanted: int) -> list[float]:
    """Milliseconds of calls while a server refuses connections, once its breaker is open."""
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
            asyncio.run(compare(sim.url.removesuffix("/v1"), api.url, calls, at_once))
            say(f"of the batch's {jobs} jobs {pool.batch(batch).done} were done meanwhile")
            shown("one of two servers is gone", refused(api, "category:pair", 200))
            shown("a lone server is gone", refused(api, "category:lone", 503))
            pool.cli("cancel", batch)


if __name__ == "__main__":
    main()
