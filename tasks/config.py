"""offload.yaml: read, checked, and put together with the defaults.

Merging is one rule a section.  `providers` replaces the default one; `classes` and `categories` add to the
defaults by name and override the fields they give.  A default class keeps only those servers that exist.
Every fault is a ConfigError with file, line, field and the nearest known name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from tasks.categories import AUDIT, DEFAULT_CATEGORIES, Category
from tasks.policy.file import load_policy
from tasks.privacy import Reach, is_cloud_name
from tasks.providers import Limit, Name, Price, Provider, Strict
from tasks.registry import (
    CLOUD,
    DEFAULT_ALIASES,
    DEFAULT_CLASSES,
    DEFAULT_PROVIDERS,
    ApiSettings,
    AuditSettings,
    ModelClass,
    NotifySettings,
    PrivacySettings,
    Registry,
    RetentionSettings,
    Serve,
    TimeoutSettings,
    WebhookTarget,
    nearest,
)
from tasks.settings import Settings
from tasks.yaml_text import Fault, Way, faults, keys, read_text, understood

_M = TypeVar("_M", bound=BaseModel)
_T = TypeVar("_T")


class ConfigFile(Strict):
    """offload.yaml as it is written."""

    providers: tuple[Provider, ...] | None = None
    classes: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    categories: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    privacy: PrivacySettings = PrivacySettings()
    audit: AuditSettings = AuditSettings()
    retention: RetentionSettings = RetentionSettings()
    notify: NotifySettings = NotifySettings()
    api: ApiSettings = ApiSettings()
    aliases: dict[str, str] = Field(
        default_factory=dict,
        description="a name that clients of /v1/messages insist on, * for any characters -> a class, a model, "
        "category:<name> or auto. The first that fits; after those given, claude-*haiku*: small and claude-*: coder",
    )


def config_path(settings: Settings) -> Path | None:
    """The configuration file in force: OFFLOAD_CONFIG, else the home's own, else what `offload up` found."""
    if settings.config is not None:
        return settings.config
    for path in (settings.home / "offload.yaml", detected_path(settings)):
        if path.exists():
            return path
    return None


def load_registry(settings: Settings) -> Registry:
    """Read the configuration; raises ConfigError with file, line, field and the nearest known name.

    Model servers of which the file says nothing are those that `offload up` found.
    """
    path, found = config_path(settings), detected_path(settings)
    if path is None:
        return build(ConfigFile(), "the defaults (an Ollama on 127.0.0.1:11434)", settings)
    if path == found or not found.exists() or says_servers(settings):
        return parse(read_text(path), str(path), settings)
    servers = _understood(read_text(found), str(found), lambda file: file)
    source = f"{path}, and the model servers that `offload up` found"
    return _understood(read_text(path), str(path), lambda file: build(_with(servers, file), source, settings))


def says_servers(settings: Settings) -> bool:
    """Whether the user's configuration names model servers, or what serves a class; raises ConfigError."""
    path = config_path(settings)
    if path is None or path == detected_path(settings):
        return False
    return _understood(read_text(path), str(path), _says_servers)


def detected_path(settings: Settings) -> Path:
    """Where `offload up` writes which model servers it found."""
    return settings.run_dir / "detected.yaml"


def parse(text: str, source: str, settings: Settings | None = None) -> Registry:
    """The registry that a configuration text describes, under the settings' policy or the shipped one."""
    return _understood(text, source, lambda file: build(file, source, settings))


def _understood(text: str, source: str, make: Callable[[ConfigFile], _T]) -> _T:
    def read(data: dict[str, Any]) -> _T:
        try:
            file = ConfigFile.model_validate(data)
        except ValidationError as error:
            raise ExceptionGroup(source, faults(error, (), _nearest_key(ConfigFile))) from None
        return make(file)

    return understood(text, source, ", ".join(ConfigFile.model_fields), read)


def _says_servers(file: ConfigFile) -> bool:
    return file.providers is not None or any("serve" in given for given in file.classes.values())


def _with(servers: ConfigFile, file: ConfigFile) -> ConfigFile:
    """A file with the servers of another one; what it says of a class itself holds."""
    names = [*servers.classes, *(name for name in file.classes if name not in servers.classes)]
    classes = {name: servers.classes.get(name, {}) | file.classes.get(name, {}) for name in names}
    return file.model_copy(update={"providers": servers.providers, "classes": classes})


def _nearest_key(model: type[BaseModel]) -> Callable[[Way], str]:
    """Names the key nearest to an unknown one; lists and mappings on the way to it are looked through."""
    inner: dict[str, type[BaseModel]] = {
        "providers": Provider,
        "limits": Limit,
        "prices": Price,
        "serve": Serve,
        "timeouts": TimeoutSettings,
        "privacy": PrivacySettings,
        "audit": AuditSettings,
        "retention": RetentionSettings,
        "notify": NotifySettings,
        "api": ApiSettings,
        "webhooks": WebhookTarget,
    }

    def known(way: Way) -> str:
        found = model
        for part in way[:-1]:
            found = inner.get(str(part), found)
        return nearest(str(way[-1]), keys(found))

    return known


def build(file: ConfigFile, source: str, settings: Settings | None = None) -> Registry:
    """Put a configuration file and the defaults together; raises Fault for what does not fit."""
    providers = _providers(file)
    classes = _classes(file, providers)
    categories = _categories(file, classes)
    policy = load_policy(settings, categories)
    aliases = file.aliases | {name: meant for name, meant in DEFAULT_ALIASES.items() if name not in file.aliases}
    sections = file.privacy, file.audit, file.retention, file.notify, file.api, aliases
    registry = Registry(providers, classes, categories, source, policy, *sections)
    _check_auditor(registry)
    _check_aliases(file, registry)
    return registry


def _providers(file: ConfigFile) -> dict[str, Provider]:
    providers: dict[str, Provider] = {}
    for i, provider in enumerate(DEFAULT_PROVIDERS if file.providers is None else file.providers):
        if provider.name in providers:
            raise Fault(("providers", i, "name"), f"two providers are named {provider.name!r}")
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
                raise Fault(
                    ("classes", name, "serve", i, "provider"),
                    f"no provider is named {serve.provider!r}" + nearest(serve.provider, list(providers)),
                )
        _check_contexts(name, classes[name], providers)
        _check_reaches(name, classes[name], providers)
    return classes


def _check_contexts(name: str, model_class: ModelClass, providers: Mapping[str, Provider]) -> None:
    """Models of one class stand in for each other, so a prompt that fits one must fit all."""
    pinned = model_class.options.get("num_ctx")
    for i, serve in enumerate(model_class.serve):
        path = ("classes", name, "serve", i, "context")
        if providers[serve.provider].kind == "ollama" and pinned and serve.context not in (None, pinned):
            raise Fault(path, f"an Ollama model gets the class's num_ctx, which is {pinned}")
        if model_class.context(serve) != model_class.context(model_class.serve[0]):
            raise Fault(path, "models of one class stand in for each other: give all the same context, or two classes")


def _check_reaches(name: str, model_class: ModelClass, providers: Mapping[str, Provider]) -> None:
    """A class is of one reach, so that whoever serves a job of its queue may have it."""
    for i, serve in enumerate(model_class.serve):
        path = ("classes", name, "serve", i)
        provider, first = providers[serve.provider], providers[model_class.serve[0].provider]
        if provider.reach is not first.reach:
            raise Fault(
                (*path, "provider"),
                f"{provider.name} is {provider.reach} and {first.name} is {first.reach}; a class is of one reach: "
                "make two classes",
            )
        if name == CLOUD and provider.reach is not Reach.CLOUD:
            raise Fault((*path, "provider"), f"class {CLOUD} is served by providers of reach cloud only")
        if provider.kind in ("ollama", "openai") and provider.reach is not Reach.CLOUD and is_cloud_name(serve.model):
            raise Fault((*path, "model"), "runs on somebody else's machine: give its provider reach: cloud")
        for limit in provider.limits:
            if limit.unit not in ("requests", "tokens") and limit.unit not in provider.prices.get(serve.model, {}):
                unpriced = f"provider {provider.name} has a limit of {limit.unit}, and no price of it for {serve.model}"
                raise Fault((*path, "model"), unpriced)


def _check_auditor(registry: Registry) -> None:
    name = registry.audit.private_class
    if name is None:
        return
    path = ("audit", "private_class")
    if name not in registry.classes:
        raise Fault(path, f"no class is named {name!r}" + nearest(name, list(registry.classes)))
    if registry.reaches.get(name) is Reach.CLOUD:
        raise Fault(path, "is a cloud's; private jobs are audited at home")


def _check_aliases(file: ConfigFile, registry: Registry) -> None:
    for name, meant in file.aliases.items():
        if not registry.knows(meant):
            known = [*registry.classes, *registry.models, "auto", *(f"category:{c}" for c in registry.categories)]
            raise Fault(("aliases", name), f"no class, model or category is {meant!r}" + nearest(meant, known))


def _categories(file: ConfigFile, classes: Mapping[str, ModelClass]) -> dict[str, Category]:
    categories = dict(DEFAULT_CATEGORIES)
    for name, given in file.categories.items():
        if name == AUDIT.name:
            raise Fault(("categories", name), "is the pool's own category; name yours otherwise")
        base = categories[name].model_dump(by_alias=True) if name in categories else {}
        categories[name] = _section(Category, given, base, ("categories", name))
        if categories[name].model_class not in classes:
            missing = categories[name].model_class
            raise Fault(
                ("categories", name, "class"), f"no class is named {missing!r}" + nearest(missing, list(classes))
            )
    return categories


def _section(model: type[_M], given: dict[str, Any], base: dict[str, Any], path: tuple[str, str]) -> _M:
    if given.get("name", path[1]) != path[1]:
        raise Fault((*path, "name"), f"its name is {path[1]!r}, the key it stands under")
    data = base | given | {"name": path[1]}
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise faults(error, path, _nearest_key(model))[0] from None


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
