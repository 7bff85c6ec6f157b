"""What an Ollama server says of itself, and its store of models: tags, ps, show, pull, delete.

Names without a tag are listed with `:latest`, as Ollama does.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import orjson
from aiohttp import web

from workers.simulator.asks import Refusal
from workers.simulator.config import ModelSpec
from workers.simulator.delivery import JSON, at_once
from workers.simulator.ollama_routes import NDJSON
from workers.simulator.state import PlainRoutes, Simulator

VERSION = "0.33.0"
#: what /api/ps shows for a model that is never unloaded
_FOR_EVER_S = 100 * 365 * 86400.0


def _tagged(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def _describe(name: str, spec: ModelSpec) -> dict[str, Any]:
    capabilities = ["embedding"] if spec.kind == "embed" else ["completion", "tools"]
    details = {
        "parent_model": "", "format": "gguf", "family": "simulated", "families": ["simulated"],
        "parameter_size": "0B", "quantization_level": "Q4_0", "context_length": spec.context,
    }  # fmt: skip
    return {
        "name": _tagged(name), "model": _tagged(name), "size": 1_000_000,
        "modified_at": "2026-01-01T00:00:00Z",
        "digest": sha256(name.encode()).hexdigest(), "details": details,
        "capabilities": capabilities + ["thinking"] * spec.thinking,
    }  # fmt: skip


async def root(sim: Simulator, request: web.BaseRequest) -> web.Response:
    """GET /."""
    return at_once(b"Ollama is running", "text/plain; charset=utf-8")


async def version(sim: Simulator, request: web.BaseRequest) -> web.Response:
    """GET /api/version."""
    return at_once(orjson.dumps({"version": VERSION}), JSON)


async def tags(sim: Simulator, request: web.BaseRequest) -> web.Response:
    """GET /api/tags."""
    models = [_describe(name, spec) for name, spec in sim.config.models.items() if not spec.hosted]
    return at_once(orjson.dumps({"models": models}), JSON)


async def loaded(sim: Simulator, request: web.BaseRequest) -> web.Response:
    """GET /api/ps."""
    models = []
    for model in sim.pool.loaded():
        spec = sim.config.models.get(model.name, ModelSpec())
        left = min(model.expires - time.monotonic(), _FOR_EVER_S)
        models.append({
            **_describe(model.name, spec), "size_vram": 1_000_000,
            "context_length": model.runner[0] or spec.context if model.runner else spec.context,
            "expires_at": (datetime.now(UTC) + timedelta(seconds=left)).isoformat(),
        })  # fmt: skip
    return at_once(orjson.dumps({"models": models}), JSON)


async def show(sim: Simulator, request: web.BaseRequest) -> web.Response:
    """POST /api/show."""
    name, spec = _known(sim, await _named(request))
    said = _describe(name, spec)
    info = {
        "general.architecture": "simulated",
        "simulated.context_length": spec.context,
        "simulated.embedding_length": spec.dimensions,
    }
    about = {"model_info": info, "parameters": "", "template": "{{ .Prompt }}", "license": "simulated"}
    return at_once(
        orjson.dumps({**about, **{key: said[key] for key in ("details", "capabilities", "modified_at")}}),
        JSON,
    )


async def delete(sim: Simulator, request: web.BaseRequest) -> web.Response:
    """DELETE /api/delete."""
    name, _ = _known(sim, await _named(request))
    sim.pool.unload(name)
    sim.apply({"models": {n: spec for n, spec in sim.config.models.items() if n != name}})
    return web.Response()


async def pull(sim: Simulator, request: web.BaseRequest) -> web.Response:
    """POST /api/pull: brings back a model the simulator was started with; an error within the stream for any
    other.
    """
    asked = await _named(request)
    start, found = {"status": "pulling manifest"}, sim.first.resolve(asked)
    if found is None:
        lines: list[dict[str, Any]] = [start, {"error": "pull model manifest: file does not exist"}]
        return at_once(b"".join(orjson.dumps(line) + b"\n" for line in lines), NDJSON)
    sim.apply({"models": {**sim.config.models, found[0]: found[1]}})
    digest = "sha256:" + sha256(found[0].encode()).hexdigest()
    progress = [{"status": "pulling simulated", "digest": digest, "total": 100, "completed": n} for n in (0, 50, 100)]
    lines = [start, *progress, {"status": "verifying sha256 digest"}, {"status": "success"}]
    if orjson.loads(await request.read()).get("stream") is False:
        lines = lines[-1:]
    return at_once(b"".join(orjson.dumps(line) + b"\n" for line in lines), NDJSON)


async def _named(request: web.BaseRequest) -> str:
    try:
        body = orjson.loads(await request.read())
    except ValueError:
        raise Refusal(400, "the body is not JSON", "invalid") from None
    name = (body.get("model") or body.get("name")) if isinstance(body, dict) else None
    if not isinstance(name, str):
        raise Refusal(400, "model is required", "invalid")
    return name


def _known(sim: Simulator, asked: str) -> tuple[str, ModelSpec]:
    if (found := sim.config.resolve(asked)) is None:
        raise Refusal(404, f"model '{asked}' not found", "model")
    return found


ROUTES: PlainRoutes = {
    ("GET", "/"): root,
    ("HEAD", "/"): root,
    ("GET", "/api/version"): version,
    ("GET", "/api/tags"): tags,
    ("GET", "/api/ps"): loaded,
    ("POST", "/api/show"): show,
    ("DELETE", "/api/delete"): delete,
    ("POST", "/api/pull"): pull,
}
