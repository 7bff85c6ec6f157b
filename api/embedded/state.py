"""The run folder: one lock, and what the running pool says of itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.errors import PoolError
from tasks.settings import Settings

try:
    import fcntl
except ImportError:  # Windows, where single roles run and no pool does
    fcntl = None  # type: ignore[assignment]


def _lock_path(settings: Settings) -> Path:
    return settings.run_dir / "lock"


@contextmanager
def held_lock(settings: Settings) -> Iterator[Callable[[], bool]]:
    """Be the one supervisor of this home; raises PoolError when there is one, or can be none.

    The lock ends with the process and not before, so that `offload down` returns when nothing of the pool is left.

    Gives a function that says whether the lock's file is still the one that others would look at.
    """
    if fcntl is None:
        raise PoolError("`offload up` needs Linux or macOS; single roles run here: offload worker, offload beat …")
    try:
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)  # one that is there keeps its mode
        settings.run_dir.mkdir(exist_ok=True, mode=0o700)
        lock = os.open(_lock_path(settings), os.O_RDWR | os.O_CREAT, 0o600)  # never closed: the kernel does at the end
    except OSError as error:
        raise PoolError(f"OFFLOAD_HOME {settings.home} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise PoolError(
            f"a pool is running in {settings.home} already (pid {running_pid(settings) or '?'}); "
            "`offload status` shows it, `offload down` stops it"
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    try:
        yield lambda: _is_file(lock, _lock_path(settings))
    finally:
        settings.pool_file.unlink(missing_ok=True)


def _is_file(opened: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(opened), path.stat())
    except OSError:
        return False


def running_pid(settings: Settings) -> int | None:
    """The supervisor's process id, or None while no pool runs here."""
    if fcntl is None:
        return None
    try:
        with _lock_path(settings).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return int(file.read() or 0) or None
    except (OSError, ValueError):
        pass
    return None


def write_pool(settings: Settings, what: dict[str, Any]) -> None:
    """Tell other processes of this pool; whole or not at all, readable by its owner only."""
    partial = settings.pool_file.with_suffix(".new")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    partial.write_text(json.dumps(what))
    partial.replace(settings.pool_file)


def read_pool(settings: Settings) -> dict[str, Any]:
    """What the running pool says of itself; empty while there is none."""
    try:
        what = json.loads(settings.pool_file.read_bytes())
    except (OSError, ValueError):
        return {}
    return what if isinstance(what, dict) else {}
