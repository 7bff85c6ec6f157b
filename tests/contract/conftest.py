"""What the contract suite runs against: the simulator, and llama.cpp's own server with a tiny model."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import certifi
import pytest

from workers.backends import Backend, connect
from workers.backends.gguf_server import GgufServer
from workers.simulator import RunningSimulator, SimulatorConfig, start

Opened = AbstractAsyncContextManager[tuple[RunningSimulator, Backend]]


def missing(reason: str) -> None:
    """Skip on a laptop, fail in CI, where every part has to be there."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def _one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No TLS is spoken here: clients made by the hundred read one certificate each, and not all of the machine's."""
    first, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----")
    path = tmp_path_factory.mktemp("tls") / "one.pem"
    path.write_text(f"{first}{end}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield


@pytest.fixture(params=["ollama", "openai", "gguf"])
def kind(request: pytest.FixtureRequest) -> str:
    """The provider kinds that the simulator speaks."""
    return str(request.param)


@pytest.fixture
def opened(kind: str) -> Callable[..., Opened]:
    """`async with opened(**config) as (simulator, backend)`: both are closed after."""

    @asynccontextmanager
    async def open_both(api_key: str | None = None, **config: Any) -> AsyncIterator[tuple[RunningSimulator, Backend]]:
        simulator = await start(SimulatorConfig(**config))
        url = simulator.url if kind == "ollama" else f"{simulator.url}/v1"
        backend = connect(kind, url, "sim", api_key)
        try:
            yield simulator, backend
        finally:
            await backend.aclose()
            await simulator.stop()

    return open_both


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of 470 kB."""
    try:
        from tests.tiny_gguf import make_tiny_gguf
    except ImportError as error:
        missing(f"making a tiny model needs gguf and numpy: {error}")
    return make_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="session")
def llama(tiny_model: Path) -> Iterator[GgufServer]:
    """llama.cpp's own server, with the tiny model."""
    try:
        import xllamacpp  # noqa: F401  # only whether it is there
    except ImportError as error:
        missing(f"llama.cpp's server needs xllamacpp: {error}")
    server = GgufServer(tiny_model, slots=2, context=1024, threads=1)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())
