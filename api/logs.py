"""Logs of the roles: to stderr, for people or as JSON lines; ids, sizes and codes, never a prompt or an output.

A line that concerns a slice, a job or a batch has its id: bound in the context that its code runs in (workers/loop.py,
workers/slices.py), so that what a library says meanwhile has it too.  Of an error its class and its place are shown:
what it says itself, and the variables around it, may hold a prompt.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import structlog

from tasks.errors import OffloadError
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
    "urllib3",
)
#: frames of a traceback that are shown, the innermost
FRAMES = 20

log = structlog.get_logger(__name__)


@contextmanager
def role_logs(settings: Settings) -> Iterator[None]:
    """A role's life: its logs as the settings say, the error that ends it among them where they are JSON."""
    configure_logs(settings)
    try:
        yield
    except OffloadError as error:
        if settings.log_format != "json":
            raise
        log.critical(str(error))
        sys.exit(error.exit_code)


def configure_logs(settings: Settings) -> None:
    """Send our own logs and the libraries' through one formatter."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_words,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),  # what is not said costs nothing
        cache_logger_on_first_use=True,
    )
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    # Celery warns root of pickled messages; this pool accepts JSON only
    warnings.filterwarnings("ignore", message=".*superuser privileges")
    logging.captureWarnings(True)  # as lines of the log, and not beside it
    threading.excepthook = _thread_died
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def _without_words(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """An exception's class and where it was raised, in place of itself; nothing of a stack that was asked for."""
    event.pop("stack_info", None)
    given = event.pop("exc_info", None)
    found = sys.exc_info() if given is True else given
    error = found[1] if isinstance(found, tuple) else found
    if isinstance(error, BaseException):
        event["exception"] = type(error).__name__
        event["at"] = places(error.__traceback__)
    return event


def places(at: TracebackType | None) -> list[str]:
    """Files and lines of a traceback, the innermost last."""
    found = []
    while at is not None:
        found.append(f"{at.tb_frame.f_code.co_filename.rpartition('/')[2]}:{at.tb_lineno}")
        at = at.tb_next
    return found[-FRAMES:]


def _thread_died(fault: threading.ExceptHookArgs) -> None:
    """What a thread did not catch."""
    name, error = getattr(fault.thread, "name", "?"), fault.exc_type.__name__
    log.error("a thread died", thread=name, error=error, at=places(fault.exc_traceback))
