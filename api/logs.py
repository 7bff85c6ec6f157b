"""Logs of the roles: to stderr, for people or as JSON lines; ids, sizes and codes, never a prompt or an output."""

from __future__ import annotations

import logging
import sys
import warnings

import structlog

from tasks.settings import Settings

#: libraries whose info lines tell an operator nothing; the debug lines of the last ones hold prompts
QUIET = (
    "celery.worker.strategy",
    "celery.app.trace",
    "celery.beat",
    "celery.apps.worker",
    "kombu",
    "aiohttp.access",
    "tornado.access",
    "anthropic",
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
)


def configure_logs(settings: Settings) -> None:
    """Send our own logs and the libraries' through one formatter."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            exception_formatter=structlog.dev.plain_traceback,  # rich's shows local variables, prompts among them
        )
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    # Celery warns root of pickled messages; this pool accepts JSON only
    warnings.filterwarnings("ignore", message=".*superuser privileges")
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
