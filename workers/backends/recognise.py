"""Which model server answers at an address, and how it is: told by its replies, never by its port.

One GET of /v1/models, then the marks of each server in turn.  Nothing here generates, loads a model, or asks
`/health` of a server that has not been recognised: a LiteLLM proxy's calls every model it knows.  LM Studio
answers 200 on every path, so a status proves nothing and every mark is the shape of a body.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tasks.errors import CallError, Permanent
from tasks.privacy import is_cloud_name
from workers.backends import Health, Probe
from workers.backends.base import Answer

#: asks a path below the server's root; raises CallError where no answer came
Ask = Callable[[str], Awaitable[Answer]]


async def recognise(ask: Ask) -> Probe:
    """What an OpenAI-compatible server says of itself; its state is all that is known of one that is down."""
    try:
        listed = await ask("/v1/models")
        if listed.status == 404 and (probe := await _ollama(ask, listed)):
            return probe  # one that speaks its own protocol only
        if listed.status != 200:
            return _refused(listed)
        for mark in _MARKS:
            if probe := await mark(ask, listed):
                return probe
    except CallError as error:
        return _unreachable(error)
    if not rows_of(listed.json(), "data") and "data" not in listed.json():
        return Probe(Health.MISCONFIGURED, "no OpenAI-compatible list of models at /v1/models")
    return Probe(Health.HEALTHY, server="openai", models=_ids(listed), context=_context(listed))


async def ollama(ask: Ask) -> Probe:
    """How an Ollama is; models that run on somebody else's machine are left out."""
    try:
        tags = await ask("/api/tags")
        if tags.status != 200:
            return _refused(tags)
        running = rows_of((await ask("/api/ps")).json(), "models")
    except CallError as error:
        return _unreachable(error)
    if "models" not in tags.json():
        return Probe(Health.MISCONFIGURED, "no Ollama: /api/tags lists no models")
    loaded = [row for row in running if not is_remote(row)]
    contexts = [row["context_length"] for row in loaded if isinstance(row.get("context_length"), int)]
    return Probe(
        Health.HEALTHY,
        server="ollama",
        models=ollama_names(tags)[0],
        loaded=tuple(str(row.get("name")) for row in loaded),
        context=min(contexts, default=None),
    )


def ollama_names(tags: Answer) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names in a reply of /api/tags: those that run here, and those that run elsewhere."""
    rows = rows_of(tags.json(), "models")
    here = tuple(str(row.get("name")) for row in rows if not is_remote(row))
    return here, tuple(str(row.get("name")) for row in rows if is_remote(row))


async def _ollama(ask: Ask, _listed: Answer) -> Probe | None:
    if not (await ask("/")).body.startswith(b"Ollama is running"):
        return None
    return await ollama(ask)


async def _llama_cpp(ask: Ask, listed: Answer) -> Probe | None:
    if listed.server != "llama.cpp" and _owner(listed) != "llamacpp":
        return None
    health = await ask("/health")
    props = (await ask("/props")).json()
    settings = props.get("default_generation_settings")
    context = settings.get("n_ctx") if isinstance(settings, dict) else None
    return Probe(
        Health.HEALTHY if health.status == 200 else Health.WARMING,
        detail=f"{props['total_slots']} slots" if "total_slots" in props else "",
        server="llama.cpp",
        models=_ids(listed),
        loaded=_ids(listed) if health.status == 200 else (),
        context=context if isinstance(context, int) else None,
    )


async def _llama_swap(ask: Ask, listed: Answer) -> Probe | None:
    running = (await ask("/running")).json()
    if not isinstance(running.get("running"), list):
        return None
    rows = rows_of(running, "running")
    starting = [str(row.get("model")) for row in rows if row.get("state") == "starting"]
    return Probe(
        Health.WARMING if starting else Health.HEALTHY,
        detail=f"loading {', '.join(starting)}" if starting else "",
        server="llama-swap",
        models=_ids(listed),
        loaded=tuple(str(row.get("model")) for row in rows if row.get("state") == "ready"),
    )


async def _vllm(ask: Ask, listed: Answer) -> Probe | None:
    if _owner(listed) != "vllm":
        return None
    health = await ask("/health")
    return Probe(
        Health.HEALTHY if health.status == 200 else Health.OFFLINE,
        detail="" if health.status == 200 else "its engine has died",
        server="vllm",
        models=_ids(listed),
        loaded=_ids(listed),
        context=_context(listed),
    )


async def _lm_studio(ask: Ask, listed: Answer) -> Probe | None:
    rows = rows_of((await ask("/api/v1/models")).json(), "models")
    rows = [row for row in rows if isinstance(row.get("loaded_instances"), list)]
    if not rows:
        return None
    loaded = tuple(str(row.get("key")) for row in rows if row["loaded_instances"])
    return Probe(Health.HEALTHY, server="lm-studio", models=_ids(listed), loaded=loaded)


async def _litellm(ask: Ask, listed: Answer) -> Probe | None:
    if b"alive" not in (await ask("/health/liveliness")).body[:64]:
        return None
    return Probe(Health.HEALTHY, server="litellm", models=_ids(listed))


#: the order asks the fewest questions of the most common servers; the marks exclude each other
_MARKS = (_llama_cpp, _vllm, _ollama, _llama_swap, _lm_studio, _litellm)


def is_remote(row: Mapping[str, Any]) -> bool:
    return bool(row.get("remote_host")) or is_cloud_name(str(row.get("name", "")))


def _unreachable(error: CallError) -> Probe:
    wrong = isinstance(error, Permanent)
    return Probe(Health.MISCONFIGURED if wrong else Health.OFFLINE, str(error))


def _refused(answer: Answer) -> Probe:
    server = "llama.cpp" if answer.server == "llama.cpp" else ""
    detail = f"answered {answer.status}"
    if answer.status == 429:
        return Probe(Health.BUSY, detail, server)
    if answer.status == 503:
        return Probe(Health.WARMING if b"oading" in answer.body else Health.BUSY, detail, server)
    if answer.status >= 500:
        return Probe(Health.OFFLINE, detail, server)
    return Probe(Health.MISCONFIGURED, detail, server)


def rows_of(body: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    rows = body.get(key)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _ids(listed: Answer) -> tuple[str, ...]:
    return tuple(str(row["id"]) for row in rows_of(listed.json(), "data") if "id" in row)


def _owner(listed: Answer) -> str:
    rows = rows_of(listed.json(), "data")
    return str(rows[0].get("owned_by", "")) if rows else ""


def _context(listed: Answer) -> int | None:
    rows = rows_of(listed.json(), "data")
    sizes = [row["max_model_len"] for row in rows if isinstance(row.get("max_model_len"), int)]
    return min(sizes, default=None)
