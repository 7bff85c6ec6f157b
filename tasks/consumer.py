"""The Celery consumer of workers and beat, which `worker_consumer` names."""

from __future__ import annotations

import warnings
from contextlib import suppress

from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer


class Reconnecting(Consumer):  # type: ignore[misc]  # celery has no types
    """Outlives a lost connection over which it had received messages that no thread has taken up."""

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Let go of the connection.

        Celery 5.7 takes kombu's transport its client before the channels are closed. What then wants to give back a
        message, or later to acknowledge it, has no address any more and fails in a way for which Celery ends the
        worker. Nothing need be given back: the sweep sends slices again, and beat its own tasks.
        """
        transport = self.connection.transport
        client = transport.client
        with warnings.catch_warnings(action="ignore", category=CPendingDeprecationWarning), suppress(AttributeError):
            super().on_connection_error_after_connected(exc)  # it warns of a setting that tasks/app.py makes on purpose
        transport.client = client
