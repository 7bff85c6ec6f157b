"""What is broken, with the command that mends it.  Every check is one function; none of them generates anything."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import redis

from api.embedded.state import read_pool
from api.use_cases.healthy import page_trouble
from api.use_cases.pool import Pool
from api.use_cases.watching import live_workers
from api.use_cases.webhooks import lacks
from scheduler.receivers import receivers
from tasks.errors import OffloadError
from tasks.ledger import api_batches, notices, reading, ticks, usage
from tasks.ledger.nodes import Phase
from tasks.privacy import Reach
from tasks.providers import Provider
from tasks.queues import SWEPT_KEY
from tasks.registry import CLOUD, ModelClass, Registry
from tasks.settings import unknown_variables
from workers.backends import Health, Probe, for_provider

#: words of the databases' errors and of ours, and what mends them
LEDGER_FIXES = (
    ("older tables", "offload db upgrade"),
    ("newer tables", "update Offload on this machine"),
    ("not a database", "restore the file from a copy"),
    ("malformed", "restore the file from a copy"),
    ("connection", "start that PostgreSQL, or correct OFFLOAD_DATABASE_URL"),
    ("readonly", "make the file and its folder writable"),
    ("full", "free the disk"),
    ("locked", "find out who holds it: fuser -v on the file"),
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at. fix: the command or the line of offload.yaml that mends it; empty when it is fine."""

    check: str
    ok: bool
    detail: str
    fix: str = ""


def examine(pool: Pool) -> list[Finding]:
    """Every check, in the order in which things depend on each other."""
    findings = [*_variables()]
    try:
        registry = pool.registry
        findings.append(Finding("configuration", True, registry.source))
    except OffloadError as error:
        return [*findings, Finding("configuration", False, str(error), "offload config check")]
    findings += [*_redis(pool), *_ledger(pool)]
    probes = asyncio.run(_probe_all(registry))
    whole = all(f.ok for f in findings if f.check == "ledger")
    healthy = _healthy_providers(pool) if whole else set()
    told = _told_elsewhere(pool) if whole else {}
    findings += [*_providers(registry, probes, healthy, told), *_classes(registry, probes, told)]
    if whole:
        findings += [*_workers(pool, registry), *_limits(pool, registry), *_beat(pool), *_notify(pool, registry)]
        findings += _webhooks(pool, registry)
    return [*findings, *_api(pool)]


def _variables() -> Iterator[Finding]:
    for name in unknown_variables():
        yield Finding("environment", False, f"{name} means nothing to Offload", f"unset {name}")


def _redis(pool: Pool) -> Iterator[Finding]:
    url = pool.settings.broker_url()
    if url is None:
        yield Finding("redis", False, "no pool runs here and OFFLOAD_REDIS_URL is not set", "offload up --detach")
        return
    fix = (
        "start that Redis, or correct OFFLOAD_REDIS_URL"
        if os.environ.get("OFFLOAD_REDIS_URL")
        else "offload up --detach"
    )
    trouble = ""
    try:
        client = redis.Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3)
        info: Any = client.info()
        try:
            client.set(SWEPT_KEY, "1", ex=60)
        except redis.ResponseError as error:
            trouble = _trouble(error)
        client.close()
    except (redis.RedisError, ValueError, OSError) as error:
        yield Finding("redis", False, f"does not answer ({type(error).__name__})", fix)
        return
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield Finding(
            "redis",
            False,
            f"maxmemory-policy is {policy}: it may evict queues",
            "redis-cli config set maxmemory-policy noeviction",
        )
    elif info.get("role") != "master":
        yield Finding("redis", False, "is a replica and takes no writes", "name the master in OFFLOAD_REDIS_URL")
    elif trouble:
        yield Finding("redis", False, trouble, "redis-cli info memory; redis-cli info persistence")
    else:
        yield Finding("redis", True, f"{info.get('server_name', 'redis')} {info.get('redis_version', '')}")


def _trouble(error: redis.RedisError) -> str:
    from tasks.app import broker_words  # Celery takes a while to import: only here

    return broker_words(error)


def _ledger(pool: Pool) -> Iterator[Finding]:
    try:
        ticks.tick(pool.db, "doctor", {})
        yield Finding("ledger", True, pool.db.where)
    except OffloadError as error:
        otherwise = "make the folder writable, or set OFFLOAD_HOME or OFFLOAD_DATABASE_URL"
        yield Finding("ledger", False, str(error), _ledger_fix(str(error), otherwise))
    except Exception as error:
        cause = str(getattr(error, "orig", None) or type(error).__name__).split("\n")[0]
        otherwise = "look at that PostgreSQL" if pool.db.is_postgres else "restore the file from a copy"
        yield Finding("ledger", False, f"{pool.db.where}: {cause}", _ledger_fix(cause, otherwise))


def _ledger_fix(said: str, otherwise: str) -> str:
    return next((fix for words, fix in LEDGER_FIXES if words in said), otherwise)


async def _probe_all(registry: Registry) -> dict[str, Probe]:
    asked = [p for p in registry.providers.values() if p.kind != "gguf"]
    backends = [for_provider(p, registry.markers) for p in asked]
    probes = await asyncio.gather(*(b.probe() for b in backends))
    for backend in backends:
        await backend.aclose()
    return {p.name: probe for p, probe in zip(asked, probes, strict=True)}


def _healthy_providers(pool: Pool) -> set[str]:
    """Those whose workers live and are well."""
    live = live_workers(pool, reading.all_workers(pool.db))
    return {w.provider for w in live if w.health == Health.HEALTHY}


def _told_elsewhere(pool: Pool) -> dict[str, str]:
    """What workers say of providers that do not answer here: those of other nodes, and those that were stopped."""
    told: dict[str, str] = {}
    for worker in live_workers(pool, reading.all_workers(pool.db)):
        if worker.phase == Phase.STOPPED:
            told.setdefault(worker.provider, worker.detail)
        elif worker.node != pool.settings.node and worker.health == Health.HEALTHY:
            told[worker.provider] = f"well, by the word of {worker.name}"
    return told


def _providers(
    registry: Registry, probes: dict[str, Probe], healthy: set[str], told: dict[str, str]
) -> Iterator[Finding]:
    if not registry.providers:
        yield Finding(
            "providers", False, "none is configured and none was found", "start a model server, then offload up"
        )
    for provider in registry.providers.values():
        if provider.kind == "gguf":
            yield _gguf(provider)
        elif provider.name in told and probes[provider.name].health is Health.OFFLINE:
            yield Finding(f"provider {provider.name}", True, told[provider.name])
        else:
            yield _provider(provider, probes[provider.name], has_worker=provider.name in healthy)


def _provider(provider: Provider, probe: Probe, *, has_worker: bool) -> Finding:
    name, where = f"provider {provider.name}", provider.where
    if provider.api_key_env and not os.environ.get(provider.api_key_env):
        key = provider.api_key_env
        if has_worker and provider.reach is Reach.CLOUD:  # a cloud's key is in its worker's environment only
            return Finding(name, True, f"{provider.kind} at {where}, reach {provider.reach}, by its worker's word")
        return Finding(name, False, f"{key} is not set", f"export {key}=…; then: offload down; offload up")
    if probe.health is Health.OFFLINE:
        detail = f"nobody answers at {where} ({probe.detail})" if probe.detail else f"nobody answers at {where}"
        return Finding(name, False, detail, f"start it, or correct providers.{provider.name}.url")
    if probe.health is Health.MISCONFIGURED:
        return Finding(name, False, probe.detail, f"correct providers.{provider.name} ({_mends(provider)})")
    return Finding(name, True, f"{probe.server or provider.kind} at {where}, reach {provider.reach}, {probe.health}")


def _mends(provider: Provider) -> str:
    return "command" if provider.kind == "command" else "api_key_env, url"


def _limits(pool: Pool, registry: Registry) -> Iterator[Finding]:
    """Limits that leave no room now: jobs wait at them."""
    for provider in registry.providers.values():
        for words in usage.at_limits(pool.db, provider) if provider.limits else ():
            fix = f"wait, or raise providers.{provider.name}.limits"
            yield Finding(f"limits of {provider.name}", False, f"{words}; its jobs wait", fix)


def _gguf(provider: Provider) -> Finding:
    import importlib.util

    name = f"provider {provider.name}"
    if provider.path is None or not provider.path.expanduser().is_file():
        return Finding(name, False, f"there is no file {provider.path}", f"correct providers.{provider.name}.path")
    if importlib.util.find_spec("xllamacpp") is None:
        return Finding(name, False, "llama.cpp is not installed", "pip install xllamacpp")
    return Finding(name, True, f"{provider.path}, served by its worker")


def _classes(registry: Registry, probes: dict[str, Probe], told: dict[str, str]) -> Iterator[Finding]:
    for model_class in registry.classes.values():
        if not model_class.serve and model_class.name == CLOUD:
            yield Finding(f"class {CLOUD}", True, "nothing serves it: what may not be done here is refused")
        elif not model_class.serve:
            yield Finding(
                f"class {model_class.name}",
                False,
                "nothing serves it; its jobs wait",
                f"add classes.{model_class.name}.serve to offload.yaml",
            )
        else:
            yield from _served(model_class, registry, probes, told)


def _served(
    model_class: ModelClass, registry: Registry, probes: dict[str, Probe], told: dict[str, str]
) -> Iterator[Finding]:
    for serve in model_class.serve:
        probe = probes.get(serve.provider)
        name = f"class {model_class.name}"
        where = f"{serve.model} on {serve.provider}"
        if probe is None:
            yield Finding(name, True, where)
        elif serve.provider in told and probe.health is Health.OFFLINE:
            yield Finding(name, True, f"{where}: {told[serve.provider]}")
        elif probe.health is Health.OFFLINE:
            yield Finding(name, False, f"{where}: the provider is away", f"start provider {serve.provider}")
        elif not probe.has(serve.model):
            ollama = registry.providers[serve.provider].kind == "ollama"
            fix = (
                f"ollama pull {serve.model}"
                if ollama
                else f"load {serve.model} there, or correct classes.{model_class.name}.serve"
            )
            yield Finding(name, False, f"{where}: the provider does not have it", fix)
        else:
            yield Finding(name, True, where)


def _workers(pool: Pool, registry: Registry) -> Iterator[Finding]:
    live = live_workers(pool, reading.all_workers(pool.db))
    for name in registry.providers:
        if not registry.classes_of(name):
            continue
        mine = [w for w in live if w.provider == name]
        if not mine:
            yield Finding(
                f"worker {name}", False, "no live worker", f"offload up, or: offload worker --provider {name}"
            )
        for worker in mine:
            if worker.phase != Phase.SERVING:
                yield Finding(f"worker {name}", True, f"{worker.name} is {worker.phase}: {worker.detail}")
                continue
            detail = f"{worker.name}: {worker.in_flight} of {worker.capacity} in flight, {worker.health}"
            ok = worker.health in (Health.HEALTHY, Health.BUSY, Health.WARMING)
            yield Finding(f"worker {name}", ok, detail, "" if ok else f"see provider {name}: {worker.detail}")
    yield from _left_out(registry, live)


def _left_out(registry: Registry, live: list[Any]) -> Iterator[Finding]:
    """Classes that every live worker was told not to serve (`worker --serves`), or that only drained nodes serve."""
    here = {w.provider for w in live}
    for model_class in registry.classes.values():
        providers = sorted({s.provider for s in model_class.serve} & here)
        if providers and not any(model_class.name in w.classes for w in live):
            fix = f"offload worker --provider {providers[0]} --serves {model_class.name}"
            yield Finding(f"class {model_class.name}", False, "no live worker serves it; its jobs wait", fix)
        serving = [w for w in live if model_class.name in w.classes]
        if serving and all(w.phase != Phase.SERVING for w in serving):
            nodes = sorted({w.node for w in serving})
            detail = f"only drained nodes serve it ({', '.join(nodes)}); its jobs wait"
            yield Finding(f"class {model_class.name}", False, detail, f"offload resume {nodes[0]}")


def _beat(pool: Pool) -> Iterator[Finding]:
    ago = ticks.last_tick(pool.db, "sweep")
    if ago is None or ago > ticks.LATE_SWEEPS * pool.settings.times.sweep:
        detail = "has never ticked" if ago is None else f"last ticked {ago:.0f} s ago"
        yield Finding("beat", False, detail, "offload up, or: offload beat")
    else:
        yield Finding("beat", True, f"ticked {ago:.0f} s ago")


def _api(pool: Pool) -> Iterator[Finding]:
    """The HTTP API that `offload up` started on this machine."""
    url = read_pool(pool.settings).get("api")
    if not url:
        return
    trouble = page_trouble(f"{url}/healthz")
    yield Finding("api", not trouble, trouble or f"answers at {url}/v1", "offload down; offload up" if trouble else "")


def _notify(pool: Pool, registry: Registry) -> Iterator[Finding]:
    """Receivers that lack something, or did not take what they were told; beat's word counts for its environment."""
    troubles, last = notices.troubles(pool.db), notices.last_sent(pool.db)
    for receiver in receivers(registry.notify):
        name, why = receiver.name, receiver.lacks()
        refused, answer = troubles.get(name, (0, ""))
        if refused:
            detail = f"{refused} notice{'s' * (refused != 1)} not taken: {answer}"
            yield Finding(f"notify {name}", False, detail, _mend(name, answer))
        elif why and name not in last:
            yield Finding(f"notify {name}", False, why, _mend(name, why))
        else:
            ago = f"took its last {last[name]:.0f} s ago" if name in last else "was told nothing yet"
            yield Finding(f"notify {name}", True, ago)


def _webhooks(pool: Pool, registry: Registry) -> Iterator[Finding]:
    """Who is told the end of batches and lacks something, or did not take it."""
    told, waiting = api_batches.deliveries(pool.db)
    for target in registry.api.webhooks:
        name, why = target.url_env, lacks(target, os.environ)
        if refused := sum(name not in knows for knows in waiting):
            detail = f"{refused} end{'s' * (refused != 1)} of batches not taken; the API's log says why"
            yield Finding(
                f"webhook {name}", False, detail, "mend its address, or say private: true; start the API again"
            )
        elif why and name not in told:
            yield Finding(f"webhook {name}", False, why, f"export {why.split()[0]}=…; start the API again")
        else:
            yield Finding(f"webhook {name}", True, "took its last" if name in told else "was told nothing yet")


def _mend(receiver: str, why: str) -> str:
    if "not installed" in why:
        return "pip install 'offload[notify]'"
    return f"export {receiver}=…; start beat again" if "not set" in why else "offload notify test"
