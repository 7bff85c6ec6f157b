"""A plan made from the whole configuration; importing this loads all that the configuration needs."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from typing import Any

from tasks.categories import Category
from tasks.config import load_registry, parse
from tasks.privacy import Reach
from tasks.providers import Provider
from tasks.registry import CLOUD, ModelClass, Registry, Serve
from tasks.settings import load_settings

#: kinds of providers that one HTTP request reaches
_STRAIGHT = ("ollama", "openai")


def plain_plan() -> dict[str, Any]:
    """The plan of the configuration in force; raises ConfigError."""
    return of_registry(load_registry(load_settings()))


def write_shipped() -> None:
    """Write defaults.json anew, from what the package brings."""
    from api.helpers.plan import SHIPPED

    with open(SHIPPED, "w", encoding="utf-8") as file:
        file.write(shipped_text())


def shipped_text() -> str:
    """defaults.json as it should be."""
    return json.dumps(of_registry(parse("", "the defaults")), indent=1, ensure_ascii=False) + "\n"


def of_registry(registry: Registry) -> dict[str, Any]:
    """The plan of a configuration, plain."""
    return {
        "version": version("offload"),
        "privacy": registry.privacy.default,
        "markers": dataclasses.asdict(registry.markers),
        "policy": dataclasses.asdict(registry.policy),
        "categories": {name: _way(category, registry) for name, category in registry.categories.items()},
    }


def _way(category: Category, registry: Registry) -> dict[str, Any]:
    model_class = registry.classes[category.model_class]
    serve = _straight(model_class, registry)
    return {
        "kind": category.kind,
        "model": serve.model if serve else "",
        "server": _server(registry.providers[serve.provider]) if serve else None,
        "hindrance": "" if serve else _hindrance(category, model_class, registry),
        "cloud_only": registry.reaches.get(model_class.name) is Reach.CLOUD,
        "system": category.system,
        "json": category.json,
        "think": category.think if category.think is not None else model_class.think,
        "temperature": category.temperature,
        "max_tokens": category.max_tokens,
        "options": model_class.options,
        "connect_s": model_class.timeouts.connect,
        "total_s": model_class.timeouts.total,
        "privacy": category.privacy,
    }


def _straight(model_class: ModelClass, registry: Registry) -> Serve | None:
    """The first server of a class that a request reaches, and which is no cloud's."""
    for serve in model_class.serve:
        provider = registry.providers[serve.provider]
        if provider.kind in _STRAIGHT and provider.reach is not Reach.CLOUD:
            return serve
    return None


def _server(provider: Provider) -> dict[str, Any]:
    return {
        "name": provider.name,
        "kind": provider.kind,
        "url": provider.url,
        "reach": provider.reach,
        "api_key_env": provider.api_key_env,
    }


def _hindrance(category: Category, model_class: ModelClass, registry: Registry) -> str:
    """Why nobody can be asked straight for a category's answers."""
    if registry.reaches.get(model_class.name) is Reach.CLOUD:
        through = "" if model_class.name == CLOUD and not registry.has_cloud else ", through the pool"
        return f"{category.name} is left to the cloud{through}"
    if not model_class.serve:
        return f"no provider serves class {model_class.name}"
    provider = registry.providers[model_class.serve[0].provider]
    what = "a model file, which a running pool serves" if provider.kind == "gguf" else "a command, which the pool runs"
    return f"provider {provider.name} is {what}: say --pool"
