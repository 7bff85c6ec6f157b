"""A pool in a folder: its ledger, the files uploaded to its API, offload.yaml and policy.yaml, and a manifest that says
what each must be.

Redis is left out: it carries references that the sweep makes anew.  Keys are left out: they live in the environment.
What ran when the copy was made runs again where it is put back: its leases are over by then.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from api.embedded.state import running_pid
from api.use_cases.uploads import FILES, PARTIAL
from tasks.config import config_path, detected_path
from tasks.errors import NotFound, PoolError, UsageError
from tasks.ledger import api_batches, copying, schema
from tasks.ledger.database import Database
from tasks.policy.file import policy_path
from tasks.settings import Settings

MANIFEST = "manifest.json"
#: bytes read at once
PIECE = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """What a backup is. made_at: UTC. revision: of the ledger's tables. files: path in it -> SHA-256."""

    offload: str
    made_at: str
    ledger: str
    revision: str
    files: dict[str, str]


def back_up(settings: Settings, to: Path) -> Manifest:
    """Make a backup in a new folder, whole or not at all, while the pool runs; raises UsageError or PoolError."""
    with closing(_ledger(settings)) as db, _new_folder(to) as partial:
        made_by = schema.revision(db)
        if made_by is None:
            raise PoolError(f"there is no ledger at {db.where}")
        _copy_uploads(settings, partial)
        with _in_words(db, "copied"):
            copying.copy(db, partial / copying.FILES[copying.kind(db)])
        _copy_uploads(settings, partial)  # those that the ledger got to know while it was copied
        for name, path in _configuration(settings).items():
            shutil.copyfile(path, partial / name)
        manifest = _manifest(partial, copying.kind(db), made_by)
        (partial / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    return manifest


@contextmanager
def _new_folder(to: Path) -> Iterator[Path]:
    """A folder that is put in its place when all went well; raises UsageError where it cannot be."""
    with _words_of_place(to):
        if to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir()))):
            raise UsageError(f"{to} is there already; name a new folder")
        to.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{to.name}.", dir=to.parent))
    try:
        yield partial
        with _words_of_place(to):
            partial.replace(to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _words_of_place(to: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{to} cannot be made ({error.strerror})") from None


def restore(settings: Settings, source: Path) -> tuple[Manifest, list[str]]:
    """Put a backup back into an empty pool, with the tables of this version.

    Returns the manifest, and the names of files that were there and were left.
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
        with _in_words(db, "restored"):
            copying.check_free(db, settings.times)
            left = _put_configuration(settings, source, manifest)
            uploads = _put_uploads(settings, source, manifest)
            # last: what is broken off before it can be done again
            copying.put_back(db, source / copying.FILES[manifest.ledger], settings.times)
            schema.migrate(db)
            known = api_batches.file_ids(db)
            for path in uploads:
                if path.name not in known:  # nobody would ever delete it
                    path.unlink()
    finally:
        db.close()
    return manifest, left


def read_manifest(source: Path) -> Manifest:
    """What a folder's backup is; raises NotFound where there is none, PoolError where a file is not as it was."""
    try:
        manifest = Manifest(**json.loads((source / MANIFEST).read_bytes()))
        says = [manifest.offload, manifest.made_at, manifest.ledger, manifest.revision, *manifest.files.values()]
        is_whole = all(isinstance(one, str) for one in says) and copying.FILES[manifest.ledger] in manifest.files
    except FileNotFoundError:
        raise NotFound(f"{source} holds no backup: there is no {MANIFEST}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise PoolError(f"{source / MANIFEST} cannot be read, or names no ledger")
    for name, wanted in manifest.files.items():
        path = source / name
        if not path.is_file() or path.is_symlink() or _digest(path) != wanted:
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
    detected = detected_path(settings)
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


def _copy_uploads(settings: Settings, to: Path) -> None:
    """Copy the uploaded files that are not copied yet; one that is deleted just now is left out."""
    for path in (settings.home / FILES).glob("file-*"):
        copied = to / FILES / path.name
        if path.suffix != PARTIAL and not copied.exists():
            copied.parent.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileNotFoundError):
                _copy_private(path, copied)


def _put_uploads(settings: Settings, source: Path, manifest: Manifest) -> list[Path]:
    """Put the uploaded files back; where they are."""
    names = [name for name in manifest.files if name.startswith(f"{FILES}/")]
    if names:
        (settings.home / FILES).mkdir(mode=0o700, parents=True, exist_ok=True)
    made = [settings.home / FILES / Path(name).name for name in names]
    for name, path in zip(names, made, strict=True):
        _copy_private(source / name, path)
    return made


def _copy_private(source: Path, to: Path) -> None:
    with source.open("rb") as read, os.fdopen(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as kept:
        shutil.copyfileobj(read, kept, PIECE)


def _manifest(folder: Path, ledger: str, revision: str) -> Manifest:
    there = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): _digest(path) for path in there}
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    return Manifest(importlib.metadata.version("offload"), made_at, ledger, revision, files)


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            found.update(piece)
    return found.hexdigest()


@contextmanager
def _in_words(db: Database, done: str) -> Iterator[None]:
    """Raise PoolError, that the ledger cannot be `done`, with the database's or the system's own words."""
    try:
        yield
    except (sqlite3.Error, DBAPIError, OSError) as error:
        said = str(getattr(error, "orig", None) or getattr(error, "strerror", None) or error).split("\n")[0]
        raise PoolError(f"the ledger {db.where} cannot be {done}: {said}") from None
