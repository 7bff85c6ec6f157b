"""Which model servers run on this machine.

Asks each port what answers there (backends/recognise.py tells servers apart by their replies).  Never
generates and never loads a model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from workers.backends import Health, Probe
from workers.backends.base import Answer, Http
from workers.backends.recognise import recognise

#: Ollama, llama-swap or llama.cpp, a second llama.cpp, vLLM, LM Studio
PORTS = (11434, 8080, 8081, 8000, 1234)
#: seconds for everything that is asked of one port
LIMIT = 1.0

#: servers that may pass requests on to anybody: a person has to say how far they reach
_FORWARDERS = frozenset({"litellm"})
_UNUSABLE = frozenset({Health.OFFLINE, Health.MISCONFIGURED})


@dataclass(frozen=True, slots=True)
class Found:
    """A model server, in the words of a provider's configuration.

    name: unique among those found. kind and url: as `connect` takes them. server: the program's name.
    """

    name: str
    kind: str
    url: str
    server: str
    models: tuple[str, ...]


async def detect(ports: Sequence[int] = PORTS, host: str = "127.0.0.1") -> list[Found]:
    """The model servers on these ports, in their order; takes one second at most, and raises nothing."""
    probes = await asyncio.gather(*(_look(host, port) for port in ports))
    found: list[Found] = []
    for port, probe in zip(ports, probes, strict=True):
        if probe is not None:
            found.append(_found(host, port, probe, {other.name for other in found}))
    return found


async def _look(host: str, port: int) -> Probe | None:
    http = Http(f"http://{host}:{port}", f"port {port}")

    async def ask(path: str) -> Answer:
        return await http.get(path, LIMIT)

    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(LIMIT):
                probe = await recognise(ask)
                useful = probe.server and probe.server not in _FORWARDERS
                return probe if useful and probe.health not in _UNUSABLE else None
    finally:
        await http.aclose()
    return None


def _found(host: str, port: int, probe: Probe, taken: set[str]) -> Found:
    name = probe.server.replace(".", "-")
    ollama = probe.server == "ollama"
    root = f"http://{host}:{port}"
    return Found(
        name=f"{name}-{port}" if name in taken else name,
        kind="ollama" if ollama else "openai",
        url=root if ollama else f"{root}/v1",
        server=probe.server,
        models=probe.models,
    )
