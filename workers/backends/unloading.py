"""How each model server is asked to free its memory of the pool's models; those of others stay.

    server      what is loaded             how it goes (POST)
    ollama      /api/ps                    /api/generate {"model", "keep_alive": 0}
    llama-swap  /running                   /api/models/unload/MODEL; before that was there, /api/models/unload
    llama.cpp   /v1/models, as a router    /models/unload {"model"}; with one model, no way
    lm-studio   /api/v1/models             /api/v1/models/unload {"instance_id"}

vLLM and LiteLLM have no way.  Ollama's expires a model that somebody else uses once that call has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any
from urllib.parse import quote

from tasks.errors import Busy
from workers.backends.base import Answer, Http
from workers.backends.recognise import is_remote, rows_of
from workers.backends.refusals import refusal

#: seconds for a question, and for an unload: llama-swap answers when its process has ended
ASK_S, TELL_S = 5.0, 15.0
#: seconds in which a server should have freed its memory, and between two looks
EMPTY_S, LOOK_S = 5.0, 0.1

#: the instances of some models that are in memory
Loaded = Callable[[Http, Collection[str]], Awaitable[list[str]]]
#: unloads one instance
Free = Callable[[Http, str], Awaitable[Answer]]


async def unload(http: Http, server: str, models: Collection[str]) -> bool:
    """Take these models out of a server's memory; False where it has no way. server: as a probe names it.

    Raises CallError, Busy `still_loaded` when one is still there after EMPTY_S.
    """
    match server:
        case "ollama":
            await _free_each(http, models, _ollama, _free_ollama)
        case "lm-studio":
            await _free_each(http, models, _lm_studio, _free_lm_studio)
        case "llama-swap":
            await _free_llama_swap(http, models)
        case "llama.cpp":
            if not await _routed(http):
                return False
            await _free_each(http, models, _llama_cpp, _free_llama_cpp)
        case _:
            return False
    return True


async def _free_each(http: Http, models: Collection[str], loaded: Loaded, free: Free) -> None:
    for one in await loaded(http, models):
        answer = await free(http, one)
        if answer.status >= 400:
            raise refusal(http.name, answer.status, {}, answer.body)
    await _empty(http, models, loaded)


async def _empty(http: Http, models: Collection[str], loaded: Loaded) -> None:
    """Wait until none of the models is in memory."""
    until = time.monotonic() + EMPTY_S
    while left := await loaded(http, models):
        if time.monotonic() > until:
            raise Busy("still_loaded", f"{http.name} still holds {', '.join(left)}; somebody else may use it")
        await asyncio.sleep(LOOK_S)


async def _rows(http: Http, path: str, key: str) -> list[dict[str, Any]]:
    answer = await http.get(path, ASK_S)
    if answer.status != 200:
        raise refusal(http.name, answer.status, {}, answer.body)
    return rows_of(answer.json(), key)


def _ours(name: object, models: Collection[str]) -> bool:
    """Whether a server means one of these models; Ollama lists `x` as `x:latest`."""
    return name in models or str(name).removesuffix(":latest") in models


async def _ollama(http: Http, models: Collection[str]) -> list[str]:
    there = [row for row in await _rows(http, "/api/ps", "models") if not is_remote(row)]
    return [str(row["name"]) for row in there if _ours(row.get("name"), models)]


async def _free_ollama(http: Http, name: str) -> Answer:
    return await http.tell("/api/generate", {"model": name, "keep_alive": 0, "stream": False}, TELL_S)


async def _llama_swap(http: Http, models: Collection[str]) -> list[str]:
    there = await _rows(http, "/running", "running")
    return [str(row["model"]) for row in there if _ours(row.get("model"), models)]


async def _free_llama_swap(http: Http, models: Collection[str]) -> None:
    """It is told of every model: what runs may be one of them under another name, and it knows its aliases."""
    if not await _rows(http, "/running", "running"):
        return
    paths = [f"/api/models/unload/{quote(name, safe='/:')}" for name in sorted(models)]
    if all([(await http.tell(path, {}, TELL_S)).status == 404 for path in paths]):
        await http.tell("/api/models/unload", {}, TELL_S)
    await _empty(http, models, _llama_swap)


async def _routed(http: Http) -> bool:
    """Whether a llama.cpp server is a router, which loads and unloads; one started with a model holds it."""
    return any(isinstance(row.get("status"), dict) for row in await _rows(http, "/v1/models", "data"))


async def _llama_cpp(http: Http, models: Collection[str]) -> list[str]:
    there = [row for row in await _rows(http, "/v1/models", "data") if isinstance(row.get("status"), dict)]
    loaded = [row for row in there if row["status"].get("value") in ("loaded", "loading")]
    return [str(row["id"]) for row in loaded if _ours(row.get("id"), models)]


async def _free_llama_cpp(http: Http, name: str) -> Answer:
    return await http.tell("/models/unload", {"model": name}, TELL_S)


async def _lm_studio(http: Http, models: Collection[str]) -> list[str]:
    found: list[str] = []
    for row in await _rows(http, "/api/v1/models", "models"):
        ids = [str(one["id"]) for one in rows_of(row, "loaded_instances") if "id" in one]
        found += ids if _ours(row.get("key"), models) else [one for one in ids if one in models]
    return found


async def _free_lm_studio(http: Http, name: str) -> Answer:
    return await http.tell("/api/v1/models/unload", {"instance_id": name}, TELL_S)
