"""A PostgreSQL connection that gives up on a server that does not answer: psycopg itself would wait for ever.

The server ends a statement after its `statement_timeout`, and TCP a connection whose packets get lost.  This is for
what neither sees: a proxy, a firewall or a machine that keeps the connection and says nothing more.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg
from psycopg.waiting import Ready

#: seconds without a byte after which the server is taken to be gone; more than its own statement_timeout
PATIENCE_S = 35.0


class PatientConnection(psycopg.Connection[Any]):
    """Raises OperationalError, and is closed, when an answer is overdue."""

    #: whether it now waits as long as it takes, as the server then does
    patient = False

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """Wait for what an operation asks for."""
        return super().wait(self._limited(gen), *args, **kwargs)

    def _limited(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        heard_at = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready != Ready.NONE:
                    heard_at = time.monotonic()
                elif not self.patient and time.monotonic() - heard_at > PATIENCE_S:
                    self.pgconn.finish()
                    raise psycopg.OperationalError("the connection is closed: the server did not answer in time")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value
