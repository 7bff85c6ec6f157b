"""A real Chromium without a window: this machine's own, with a profile that ends with the test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, Route, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
#: it asks nobody but the pages it is sent to
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--no-proxy-server",
    "--disable-gpu",
    "--disable-software-rasterizer",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
#: milliseconds that a page may take, and what is expected of it
PATIENCE_MS = 15_000
#: where pictures go; git ignores it
PICTURES = Path(__file__).parents[2] / "build" / "screenshots"


def executable() -> str:
    """The browser's path; without one the test is skipped, in CI it fails."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and not os.environ.get("CI"):
        pytest.skip(f"no browser is here: none of {', '.join(NAMES)}")
    assert found is not None, "CI has a browser: see .ci/run"
    return found


@contextmanager
def browsing(folder: Path, user: str, password: str) -> Iterator[BrowserContext]:
    """A browser that knows one user's password and reaches this machine only; folder: for its profile."""
    path = executable()
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            folder,
            executable_path=path,
            args=FLAGS,
            http_credentials={"username": user, "password": password},
            viewport={"width": 1440, "height": 720},
            timezone_id="UTC",
        )
        context.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        context.route(lambda url: urlsplit(url).hostname != "127.0.0.1", _refuse)
        try:
            yield context
        finally:
            context.close()


def _refuse(route: Route) -> None:
    route.abort()
