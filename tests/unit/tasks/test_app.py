"""The Celery app's connection to Redis."""

from __future__ import annotations

import ssl

import pytest

from tasks.app import make_app


@pytest.mark.parametrize("query", ["", "?ssl_ca_certs=/ca.crt"])
def test_by_tls_redis_proves_who_it_is(query: str) -> None:
    """A rediss:// address without a word about certificates asks for one that is valid."""
    asked = make_app(f"rediss://worker:secret@head:6380/0{query}").connection_for_write().ssl
    assert asked["ssl_cert_reqs"] is ssl.CERT_REQUIRED


def test_who_wants_no_proof_says_so() -> None:
    """An address that turns the proof off is taken at its word, and one without TLS gets none."""
    assert make_app("rediss://head/0?ssl_cert_reqs=none").connection_for_write().ssl["ssl_cert_reqs"] is ssl.CERT_NONE
    assert not make_app("redis://head/0").connection_for_write().ssl
