"""/healthz: whether this server and its ledger answer, asked without a key; /metrics: what Prometheus reads."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from sqlalchemy import text

from api.exporting.exporter import Exporter, exporter
from api.http.callers import Caller, needs
from api.use_cases.pool import Pool
from tasks.ledger.api_keys import Scope

router = APIRouter(tags=["service"])

Administrator = Annotated[Caller, Depends(needs(Scope.ADMIN))]


@router.get("/healthz")
def healthz(request: Request) -> dict[str, str]:
    """Whether the ledger answers."""
    with request.app.state.pool.db.read() as c:
        c.execute(text("SELECT 1"))
    return {"status": "ok"}


@router.get("/metrics")
def metrics(request: Request, caller: Administrator) -> Response:
    """How the pool stands and what it did since the first time somebody asked; as `offload metrics` says it."""
    found: Metrics = request.app.state.metrics
    encode, kind = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(found.registry()), media_type=kind)


class Metrics:
    """The exporter inside this server, made when it is first asked for."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._exporter: Exporter | None = None
        self._registry = CollectorRegistry()

    def registry(self) -> CollectorRegistry:
        """What Prometheus's package reads."""
        if self._exporter is None:
            self._exporter = exporter(self._pool.settings, self._pool.registry)
            self._exporter.begin()
            self._registry.register(self._exporter)
        return self._registry

    def close(self) -> None:
        """Close its connections."""
        if self._exporter is not None:
            self._exporter.close()
