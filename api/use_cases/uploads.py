"""Files of the HTTP API: the content in OFFLOAD_HOME/files, one file each, the rest in the ledger."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from api.use_cases import openai_texts as texts
from api.use_cases.batch_checks import MOST_LINES
from api.use_cases.pool import Pool
from api.use_cases.submitting import read_lines
from tasks.errors import Conflict, UsageError
from tasks.ledger import api_batches
from tasks.schemas import MAX_LINE_BYTES

#: the folder in OFFLOAD_HOME, and what ends the name of a file that is still written
FILES, PARTIAL = "files", ".partial"
#: bytes of a file at most
MOST_BYTES = 200 * 1024 * 1024
#: seconds a file is kept: unless asked otherwise, and what may be asked
LIVES_S, SHORTEST_S, LONGEST_S = 30 * 86_400, 3_600, 2_592_000
#: seconds without a change after which content that the ledger does not know is nobody's: an upload takes less
STRAY_S = 3_600.0


def path_of(pool: Pool, file_id: str) -> Path:
    """Where a file's content is."""
    return pool.settings.home / FILES / file_id


def keep(pool: Pool, source: BinaryIO, filename: str, owner: str, lives_s: float = LIVES_S) -> Any:
    """Keep an uploaded file; its row. Raises UsageError for one of which no line is JSON."""
    if not filename.lower().endswith(".jsonl"):
        raise UsageError(texts.NOT_JSONL)
    file_id = api_batches.new_file_id()
    path = path_of(pool, file_id)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_suffix(PARTIAL)
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as kept:
            shutil.copyfileobj(source, kept, 1 << 20)
            kept.flush()
            os.fsync(kept.fileno())
            size = kept.tell()
        _check(partial)
        partial.replace(path)
        return api_batches.keep_file(pool.db, file_id, owner, Path(filename).name[:255], size, lives_s)
    except BaseException:
        for made in (partial, path):
            made.unlink(missing_ok=True)
        raise


def _check(path: Path) -> None:
    """Whether any line that a batch would read is JSON; what is wrong with others is told of the batch."""
    words = texts.EMPTY
    with path.open("rb") as file:
        for _, raw in islice(read_lines(file), MOST_LINES):
            if len(raw) <= MAX_LINE_BYTES and _is_json(raw):
                return
            words = texts.NOT_JSONL
    raise UsageError(words)


def _is_json(raw: bytes) -> bool:
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError:
        return False
    return True


def drop(pool: Pool, file_id: str) -> None:
    """Delete a file; batches that were made of it stay. Raises Conflict while one of them is validating."""
    api_batches.drop_file(pool.db, file_id)
    path_of(pool, file_id).unlink(missing_ok=True)


def drop_expired(pool: Pool) -> int:
    """Delete the files whose time is over; how many. What died uploads and deletions left goes with them."""
    found = api_batches.expired_files(pool.db)
    for file_id in found:
        with suppress(OSError, Conflict):
            drop(pool, file_id)
    _drop_stray(pool)
    return len(found)


def _drop_stray(pool: Pool) -> None:
    """Delete content that has no row: the process was killed before that was written, or after it was deleted.

    Of a ledger that knows no file at all nothing follows: this home may have been pointed at another by mistake.
    """
    old = [path for path in (pool.settings.home / FILES).glob("file-*") if _age_s(path) > STRAY_S]
    known = api_batches.file_ids(pool.db) if old else set()
    for path in old if known else ():
        if path.name not in known:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _age_s(path: Path) -> float:
    """Seconds since it was last written; 0 where it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
