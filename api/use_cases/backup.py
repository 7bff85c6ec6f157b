"""A pool in a folder: its ledger, offload.yaml and policy.yaml, and a manifest that says what each must be.

Redis is left out: it carries references that the sweep makes anew.  Keys are left out: they live in the environment.
What ran when the copy was made runs again where it is put back: its leases are over by then.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from api.embedded.state import running_pid
from tasks.config import config_path
from tasks.errors import NotFound, PoolError, UsageError
from tasks.ledger import copying, schema
from tasks.ledger.database import Database
from tasks.policy.file import policy_path
from tasks.settings import Settings

MANIFEST = "manifest.json"
#: bytes read at once
PIECE = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """What a backup is. made_at: UTC. revision: of the ledger's tables. files: name -> SHA-256."""

    offload: str
    made_at: str
    ledger: str
    revision: str
    files: dict[str, str]


def back_up(settings: Settings, to: Path) -> Manifest:
    """Make a backup in a new folder, whole or not at all, while the pool runs; raises UsageError or PoolError."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"{to} is there already; name a new folder")
    db = _ledger(settings)
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
    try:
        made_by = schema.revision(db)
        if made_by is None:
            raise PoolError(f"there is no ledger at {db.where}")
        with _in_words(db):
            copying.copy(db, partial / copying.FILES[copying.kind(db)])
        for name, path in _configuration(settings).items():
            shutil.copyfile(path, partial / name)
        manifest = _manifest(partial, copying.kind(db), made_by)
        (partial / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
        partial.replace(to)
    finally:
        db.close()
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def restore(settings: Settings, source: Path) -> tuple[Manifest, list[str]]:
    """Put a backup back into an empty pool; the manifest, and the names of files that were there and were left.

    Raises PoolError while a pool runs or the ledger holds batches, NotFound or UsageError for what is no backup.
    """
    manifest = read_manifest(source)
    if (pid := running_pid(settings)) is not None:
        raise PoolError(f"a pool is running in {settings.home} (pid {pid}): `offload down` stops it")
    db = Database(settings.ledger())
    try:
        if copying.kind(db) != manifest.ledger:
            raise UsageError(
                f"the backup is of a {manifest.ledger} ledger and {db.where} is none; see OFFLOAD_DATABASE_URL"
            )
        schema.check_known(manifest.revision, str(source))
        with _in_words(db):
            copying.put_back(db, source / copying.FILES[manifest.ledger], settings.times)
    finally:
        db.close()
    return manifest, _put_configuration(settings, source, manifest)


def read_manifest(source: Path) -> Manifest:
    """What a folder's backup is; raises NotFound where there is none, PoolError where a file is not as it was."""
    try:
        manifest = Manifest(**json.loads((source / MANIFEST).read_bytes()))
    except FileNotFoundError:
        raise NotFound(f"{source} holds no backup: there is no {MANIFEST}") from None
    except (OSError, ValueError, TypeError):
        raise PoolError(f"{source / MANIFEST} cannot be read") from None
    for name, wanted in manifest.files.items():
        path = source / name
        if not path.is_file() or _digest(path) != wanted:
            raise PoolError(f"{path} is missing, or is not what was backed up; use another backup")
    return manifest


def _ledger(settings: Settings) -> Database:
    at = settings.ledger()
    if isinstance(at, Path) and not at.exists():  # connecting would make it
        raise PoolError(f"there is no ledger at {at}")
    return Database(at)


def _configuration(settings: Settings) -> dict[str, Path]:
    """The files that a person wrote: name in a backup -> where it is."""
    config, policy = config_path(settings), policy_path(settings)
    there = {"offload.yaml": config, "policy.yaml": policy}
    detected = settings.run_dir / "detected.yaml"
    return {name: path for name, path in there.items() if path is not None and path != detected}


def _put_configuration(settings: Settings, source: Path, manifest: Manifest) -> list[str]:
    left: list[str] = []
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in ("offload.yaml", "policy.yaml"):
        if name not in manifest.files:
            continue
        if (settings.home / name).exists():
            left.append(name)
        else:
            shutil.copyfile(source / name, settings.home / name)
    return left


def _manifest(folder: Path, ledger: str, revision: str) -> Manifest:
    files = {path.name: _digest(path) for path in sorted(folder.iterdir())}
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    return Manifest(importlib.metadata.version("offload"), made_at, ledger, revision, files)


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            found.update(piece)
    return found.hexdigest()


@contextmanager
def _in_words(db: Database) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, DBAPIError, OSError) as error:
        said = str(getattr(error, "orig", None) or getattr(error, "strerror", None) or error).split("\n")[0]
        raise PoolError(f"the ledger {db.where} cannot be copied: {said}") from None
