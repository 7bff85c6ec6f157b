"""What a module logs while a test looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs


@contextmanager
def said_by(module: ModuleType) -> Iterator[list[Any]]:
    """The lines of a module's log, whichever tests have configured logs before: its logger may keep an older way."""
    with pytest.MonkeyPatch.context() as patch, capture_logs() as logs:
        patch.setattr(module, "log", structlog.get_logger())
        yield logs
