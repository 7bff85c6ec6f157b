"""Whether an Ollama's models run on its own machine: any of them may be somebody else's, under any name (`ollama cp`).

Ollama speaks its own protocol and OpenAI's, so both backends ask here before they send.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from tasks.errors import Misconfigured, Permanent
from tasks.privacy import is_cloud_name, ollama_name
from workers.backends.base import Answer
from workers.backends.recognise import ollama_names
from workers.backends.refusals import refusal

#: seconds that a look at /api/tags is believed: a name can be given to another model at any time
BELIEVED_S = 5.0


class Locality:
    """What one server's /api/tags said last. ask: gets a path below the server's root, within so many seconds."""

    def __init__(self, name: str, ask: Callable[[str, float], Awaitable[Answer]]) -> None:
        self._name = name
        self._ask = ask
        self._here: dict[str, bool] = {}  #: by ollama_name
        self._lists = False  #: whether that was a list of models: what answers otherwise is no Ollama, and has its say
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()

    async def check(self, model: str, seconds: float) -> None:
        """Pass where a model runs on that machine; raises Permanent `not_local`, Misconfigured `model_not_found`.

        What the server does not list it may still know by a name that is not understood here. Raises CallError, too.
        """
        if is_cloud_name(model):
            raise self.elsewhere(model)
        if time.monotonic() - self._looked_at > BELIEVED_S:
            async with self._looking:  # one look for all calls that wait for it
                if time.monotonic() - self._looked_at > BELIEVED_S:
                    await self._look(seconds)
        here = self._here.get(ollama_name(model))
        if here is None and self._lists:
            raise Misconfigured("model_not_found", f"{self._name} does not list {model}; nothing was sent")
        if here is False:
            raise self.elsewhere(model)

    async def _look(self, seconds: float) -> None:
        tags = await self._ask("/api/tags", seconds)
        if tags.status != 200:
            raise refusal(self._name, tags.status, {}, tags.body)
        self.remember(tags)

    def remember(self, tags: Answer) -> None:
        """What a reply of /api/tags says."""
        self._lists = "models" in tags.json()
        here, elsewhere = ollama_names(tags)
        self._here = dict.fromkeys(map(ollama_name, here), True) | dict.fromkeys(map(ollama_name, elsewhere), False)
        self._looked_at = time.monotonic()

    def elsewhere(self, model: str) -> Permanent:
        """The error for a model on somebody else's machine, which is remembered as one."""
        self._here[ollama_name(model)] = False
        return Permanent("not_local", f"{self._name}: {model} does not run on this machine")
