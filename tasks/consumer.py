"""The Celery consumer of workers and beat, which `worker_consumer` names."""

from __future__ import annotations

from contextlib import suppress

from celery.worker.consumer import Consumer


class Reconnecting(Consumer):  # type: ignore[misc]  # celery has no types
    """Outlives a lost connection over which it had received messages that no thread has taken up."""

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Let go of the connection.

        Celery 5.7 lets go of kombu's transport before the channels are closed; one that was waiting then wants to give
        back what it had received, and fails in a way for which Celery ends the worker. The sweep sends slices again,
        and beat its own tasks.
        """
        with suppress(AttributeError):
            super().on_connection_error_after_connected(exc)
