"""offload.yaml: read, checked, and put together with the defaults.

Merging is one rule a section.  `providers` replaces the default one; `classes` and `categories` add to the
defaults by name and override the fields they give.  A default class keeps only those servers that exist.
Every fault is a ConfigError with file, line, field and the nearest known name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError

from tasks.categories import DEFAULT_CATEGORIES, Category
from tasks.errors import ConfigError
from tasks.registry import (
    DEFAULT_CLASSES,
    DEFAULT_PROVIDERS,
    ModelClass,
    Name,
    Provider,
    Registry,
    Serve,
    Strict,
    TimeoutSettings,
    nearest,
)
from tasks.settings import Settings

_M = TypeVar("_M", bound=BaseModel)


class ConfigFile(Strict):
    """offload.yaml as it is written."""

    providers: tuple[Provider, ...] | None = None
    classes: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    categories: dict[Name, dict[str, Any]] = Field(default_factory=dict)


def config_path(settings: Settings) -> Path | None:
    """The configuration file in force: OFFLOAD_CONFIG, else the home's own, else what `offload up` found."""
    if settings.config is not None:
        return settings.config
    for path in (settings.home / "offload.yaml", settings.run_dir / "detected.yaml"):
        if path.exists():
            return path
    return None


def load_registry(settings: Settings) -> Registry:
    """Read the configuration; raises ConfigError with file, line, field and the nearest known name."""
    path = config_path(settings)
    if path is None:
        return build(ConfigFile(), "the defaults (an Ollama on 127.0.0.1:11434)")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({type(error).__name__})") from None
    return parse(text, str(path))


def parse(text: str, source: str) -> Registry:
    """The registry that a configuration text describes; ConfigError where it is wrong."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text) or {}
        _check_keys_differ(root, source)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{source}{where}: not YAML: {getattr(error, 'problem', None) or 'cannot be parsed'}"
        ) from None
    except (ValueError, RecursionError) as error:  # an impossible date, nesting without end
        raise ConfigError(f"{source}: not YAML: {type(error).__name__}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{source}:1: expected a mapping with providers, classes, categories")
    try:
        return build(ConfigFile.model_validate(data), source)
    except _Fault as fault:
        raise ConfigError(_located(fault, root, source)) from None
    except ValidationError as error:
        raise ConfigError("\n".join(_located(f, root, source) for f in _faults(error, ConfigFile, ()))) from None


def _check_keys_differ(node: yaml.Node | None, source: str) -> None:
    """YAML takes the last of two equal keys in silence; here it is an error."""
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for i, (key, value) in enumerate(node.value):
                waiting.append(value)
                if isinstance(key, yaml.ScalarNode) and key.value in keys[:i]:
                    raise ConfigError(f"{source}:{key.start_mark.line + 1}: {key.value}: stands here twice")


class _Fault(Exception):
    """One thing wrong at a path of the configuration."""

    def __init__(self, path: tuple[str | int, ...], reason: str) -> None:
        super().__init__(reason)
        self.path = path


def _faults(error: ValidationError, model: type[BaseModel], prefix: tuple[str | int, ...]) -> list[_Fault]:
    found = []
    # a misspelt key first: that another is missing follows from it
    errors = sorted(error.errors(include_input=False, include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    for e in errors:
        reason = e["msg"]
        if e["type"] == "extra_forbidden":
            reason = "unknown key" + nearest(str(e["loc"][-1]), _keys(model, e["loc"][:-1]))
        found.append(_Fault(prefix + e["loc"], reason))
    return found


def _keys(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """The keys known where a path leads; lists and mappings in between are looked through."""
    inner: dict[str, type[BaseModel]] = {"providers": Provider, "serve": Serve, "timeouts": TimeoutSettings}
    for part in loc:
        model = inner.get(str(part), model)
    return [str(f.validation_alias or name) for name, f in model.model_fields.items()]


def _located(fault: _Fault, root: yaml.Node | None, source: str) -> str:
    line = _line(root, fault.path)
    return f"{source}:{line}: {'.'.join(map(str, fault.path)) or 'file'}: {fault}"


def _line(node: yaml.Node | None, path: tuple[str | int, ...]) -> int:
    """The 1-based line of a path in the YAML text, as deep as it goes."""
    line = 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def build(file: ConfigFile, source: str) -> Registry:
    """Put a configuration file and the defaults together; raises _Fault for what does not fit."""
    providers = _providers(file)
    classes = _classes(file, providers)
    categories = _categories(file, classes)
    return Registry(providers, classes, categories, source)


def _providers(file: ConfigFile) -> dict[str, Provider]:
    providers: dict[str, Provider] = {}
    for i, provider in enumerate(DEFAULT_PROVIDERS if file.providers is None else file.providers):
        if provider.name in providers:
            raise _Fault(("providers", i, "name"), f"two providers are named {provider.name!r}")
        providers[provider.name] = provider
    return providers


def _classes(file: ConfigFile, providers: Mapping[str, Provider]) -> dict[str, ModelClass]:
    classes = {}
    for name, default in DEFAULT_CLASSES.items():
        there = tuple(s for s in default.serve if s.provider in providers)
        if not there and not file.classes:  # a GGUF file alone is a whole pool
            there = tuple(
                Serve(provider=p.name, model=p.name, context=p.context) for p in providers.values() if p.kind == "gguf"
            )
        classes[name] = default.model_copy(update={"serve": there})
    for name, given in file.classes.items():
        base = classes[name].model_dump() if name in classes else {}
        classes[name] = _section(ModelClass, given, base, ("classes", name))
        for i, serve in enumerate(classes[name].serve):
            if serve.provider not in providers:
                raise _Fault(
                    ("classes", name, "serve", i, "provider"),
                    f"no provider is named {serve.provider!r}" + nearest(serve.provider, list(providers)),
                )
        _check_contexts(name, classes[name], providers)
    return classes


def _check_contexts(name: str, model_class: ModelClass, providers: Mapping[str, Provider]) -> None:
    """Models of one class stand in for each other, so a prompt that fits one must fit all."""
    pinned = model_class.options.get("num_ctx")
    for i, serve in enumerate(model_class.serve):
        path = ("classes", name, "serve", i, "context")
        if providers[serve.provider].kind == "ollama" and pinned and serve.context not in (None, pinned):
            raise _Fault(path, f"an Ollama model gets the class's num_ctx, which is {pinned}")
        if model_class.context(serve) != model_class.context(model_class.serve[0]):
            raise _Fault(path, "models of one class stand in for each other: give all the same context, or two classes")


def _categories(file: ConfigFile, classes: Mapping[str, ModelClass]) -> dict[str, Category]:
    categories = dict(DEFAULT_CATEGORIES)
    for name, given in file.categories.items():
        base = categories[name].model_dump(by_alias=True) if name in categories else {}
        categories[name] = _section(Category, given, base, ("categories", name))
        if categories[name].model_class not in classes:
            missing = categories[name].model_class
            raise _Fault(
                ("categories", name, "class"), f"no class is named {missing!r}" + nearest(missing, list(classes))
            )
    return categories


def _section(model: type[_M], given: dict[str, Any], base: dict[str, Any], path: tuple[str, str]) -> _M:
    if given.get("name", path[1]) != path[1]:
        raise _Fault((*path, "name"), f"its name is {path[1]!r}, the key it stands under")
    data = base | given | {"name": path[1]}
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _faults(error, model, path)[0] from None


def config_schema() -> dict[str, Any]:
    """offload.yaml as a JSON Schema, for editors."""
    schema = ConfigFile.model_json_schema()
    sections: tuple[tuple[str, type[BaseModel], Mapping[str, BaseModel]], ...] = (
        ("classes", ModelClass, DEFAULT_CLASSES),
        ("categories", Category, DEFAULT_CATEGORIES),
    )
    for section, model, defaults in sections:
        inner = model.model_json_schema(ref_template="#/$defs/{model}")
        schema.setdefault("$defs", {}).update(inner.pop("$defs", {}))
        needed = [r for r in inner.pop("required", ()) if r != "name"]
        schema["$defs"][model.__name__] = inner
        one = {"$ref": f"#/$defs/{model.__name__}"}
        schema["properties"][section] |= {
            "properties": dict.fromkeys(defaults, one),  # these override, so nothing is needed
            "additionalProperties": one | {"required": needed},
        }
        schema["properties"][section].pop("patternProperties", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "offload.yaml", **schema}
