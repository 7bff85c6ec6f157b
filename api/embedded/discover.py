"""Which model servers there are and what they can serve, when no configuration says it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

from tasks.providers import ANTHROPIC_KEY
from tasks.registry import CLOUD, DEFAULT_CLASSES
from workers.detect import Found, detect

#: names of models that suit a class, the best first; a class's own default model comes before them
SUITABLE: dict[str, tuple[str, ...]] = {
    "small": (
        r"gemma-?3n?\b.*\b4b",
        r"\b(3|4|7|8|9|12)b\b.*(instruct|chat|-it)\b",
        r"(gemma|llama|mistral|qwen|phi).*\b[1-9]b",
    ),
    "coder": (
        r"qwen.*coder",
        r"cod(er|estral|egemma|ellama)|devstral",
    ),
    "reason": (r"gemma-?4\b", r"gpt-oss", r"deepseek-r1|qwq|magistral", r"think|reason"),
    "embed": (r"bge", r"embed", r"(^|\W)(e5|gte|minilm)"),
}
#: what a cloud worker asks where no configuration says it
CLAUDE = "claude-sonnet-5-5"
_NO_CHAT = re.compile(r"bge|embed|(^|\W)(e5|gte|minilm)|rerank|whisper", re.IGNORECASE)


def find_servers() -> list[Found]:
    """The model servers on this machine."""
    return asyncio.run(detect())


def choose(found: Sequence[Found]) -> dict[str, Any]:
    """A configuration in offload.yaml's form: every server found, every class with the models that suit it."""
    classes: dict[str, Any] = {}
    for name in SUITABLE:
        serve = []
        default = DEFAULT_CLASSES[name]
        for server in found:
            if (model := _suitable(name, default.serve[0].model, server.models)) is not None:
                serve.append({"provider": server.name, "model": model})
        classes[name] = {"serve": serve}
    used = {entry["provider"] for section in classes.values() for entry in section["serve"]}
    providers = [{"name": f.name, "kind": f.kind, "url": f.url, "reach": "local"} for f in found if f.name in used]
    return {"providers": providers, "classes": classes} if not _has_claude() else _with_claude(providers, classes)


def _has_claude() -> bool:
    """Whether a cloud worker could work here: it has a key, and the package that it needs."""
    return bool(os.environ.get(ANTHROPIC_KEY)) and importlib.util.find_spec("anthropic") is not None


def _with_claude(providers: list[dict[str, Any]], classes: dict[str, Any]) -> dict[str, Any]:
    """A cloud worker as well. It gets what configuration, category or job let go: nothing at first."""
    claude = {"name": "claude", "kind": "anthropic"}
    cloud = {"serve": [{"provider": "claude", "model": CLAUDE}]}
    return {"providers": [*providers, claude], "classes": classes | {CLOUD: cloud}}


def serves_all(config: dict[str, Any]) -> bool:
    """Whether every class has a model."""
    return all(config["classes"][name]["serve"] for name in SUITABLE)


def simulated(url: str) -> dict[str, Any]:
    """A configuration in which the simulator serves every class with its default model."""
    provider = "simulator"
    models = {name: DEFAULT_CLASSES[name].serve[0].model for name in SUITABLE}
    return {
        "providers": [{"name": provider, "kind": "ollama", "url": url, "reach": "local", "in_flight": 8}],
        "classes": {name: {"serve": [{"provider": provider, "model": model}]} for name, model in models.items()},
    }


def _suitable(name: str, default: str, models: Sequence[str]) -> str | None:
    if default in models or f"{default}:latest" in models:
        return default if default in models else f"{default}:latest"
    for pattern in SUITABLE[name]:
        for model in models:
            if re.search(pattern, model, re.IGNORECASE) and (name == "embed") == bool(_NO_CHAT.search(model)):
                return model
    return None
