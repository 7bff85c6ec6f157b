"""Claimed jobs and the configuration that they run under, without a ledger."""

from __future__ import annotations

from typing import Any

import orjson

from tasks.config import parse
from tasks.ledger.claims import Claimed, Identity
from tasks.registry import Registry
from workers.asking import Asked, ask

ME = Identity("node", "gpu", "run1", 1)
REGISTRY: Registry = parse(
    """
providers:
  - {name: gpu, kind: ollama, url: "http://127.0.0.1:1"}
  - {name: other, kind: ollama, url: "http://127.0.0.1:2"}
classes:
  small:
    serve: [{provider: gpu, model: tiny}, {provider: gpu, model: tiny-2}]
    options: {num_ctx: 1000}
    think: false
    timeouts: {connect: 1, load: 2, first_token: 3, between_tokens: 4, total: 50}
  wide:
    serve: [{provider: gpu, model: narrow, context: 2000}, {provider: other, model: wide, context: 2000}]
  embed:
    serve: [{provider: gpu, model: bge}]
    options: {num_ctx: 1000}
    dimensions: 3
  elsewhere:
    serve: [{provider: other, model: x}]
categories:
  plain: {class: small}
  warm: {class: small, temperature: 0.5, max_tokens: 77, think: true, system: "Task: warm. Be kind."}
  form: {class: small, json: true, system: "Task: form. Answer in prose."}
  vector: {class: embed, kind: embed, system: ""}
  stubborn: {class: small, attempts: 1}
""",
    "offload.yaml",
)


def claimed(category: str = "plain", *, attempts: int = 0, model: str | None = None, **body: Any) -> Claimed:
    """A job in hand; `body` is what its line said."""
    model_class = body.pop("model_class", None) or REGISTRY.categories[category].model_class
    if not {"prompt", "messages", "input"} & set(body):
        body["prompt"] = "Hello"
    return Claimed(
        id=1,
        fence=4,
        batch_id="b",
        category=category,
        model_class=model_class,
        model=model,
        priority=0,
        attempts=attempts,
        crashes=0,
        body=orjson.dumps(body),
    )


def asked(job: Claimed) -> Asked:
    """What is sent for it."""
    return ask(job, REGISTRY, ME.provider)
