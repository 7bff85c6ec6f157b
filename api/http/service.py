"""/healthz: whether this server and its ledger answer; asked without a key."""

from __future__ import annotations

from fastapi import APIRouter, Request
from sqlalchemy import text

router = APIRouter(tags=["service"])


@router.get("/healthz")
def healthz(request: Request) -> dict[str, str]:
    """Whether the ledger answers."""
    with request.app.state.pool.db.read() as c:
        c.execute(text("SELECT 1"))
    return {"status": "ok"}
