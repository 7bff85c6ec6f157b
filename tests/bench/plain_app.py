"""What people write first: one Celery task a prompt, a thread pool, one keep-alive client, results in Redis."""

from __future__ import annotations

import os

import httpx
from celery import Celery

app = Celery("plain", broker=os.environ["PLAIN_REDIS"], backend=os.environ["PLAIN_REDIS"])
app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)

client = httpx.Client(
    base_url=os.environ["PLAIN_SERVER"],
    timeout=60,
    limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
)


@app.task(name="complete")  # type: ignore[untyped-decorator]  # celery has no types
def complete(prompt: str) -> str:
    """One prompt, one answer."""
    body = {"model": "gemma3:4b", "messages": [{"role": "user", "content": prompt}], "temperature": 0}
    reply = client.post("/chat/completions", json=body)
    reply.raise_for_status()
    return str(reply.json()["choices"][0]["message"]["content"])
