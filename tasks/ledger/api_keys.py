"""Keys of the HTTP API: made, looked up by their hash, revoked.

A key is `ofl_` and 43 random characters (256 bits), so an unsalted hash of it cannot be turned back.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.exc import IntegrityError

from tasks.errors import NotFound, UsageError
from tasks.ledger.database import Database, retried
from tasks.privacy import Tier
from tasks.tables import ApiKey

#: what every key begins with, and the characters of it that are kept to know it by
MARK, KEPT = "ofl_", 12

keys = ApiKey.__table__  # type: ignore[attr-defined]


class Scope(StrEnum):
    """What a key is for."""

    SUBMIT = "submit"  #: submit and cancel; sees what it submitted
    READ = "read"  #: see what it submitted
    ADMIN = "admin"  #: all of it, of everybody


def make(
    db: Database,
    name: str,
    scopes: Sequence[Scope],
    *,
    most_queued: int | None = None,
    per_minute: int | None = None,
    ceiling: Tier | None = None,
) -> str:
    """Make a key and return it: nobody can read it again. Raises UsageError when the name is in use."""
    key = MARK + secrets.token_urlsafe(32)
    row = {
        "id": f"key_{secrets.token_hex(6)}",
        "name": name,
        "prefix": key[:KEPT],
        "hash": hashed(key),
        "scopes": sorted(scopes),
        "most_queued": most_queued,
        "per_minute": per_minute,
        "ceiling": ceiling,
    }
    try:
        _insert(db, row)
    except IntegrityError:
        raise UsageError(f"there is a key {name[:80]!r}; revoked ones keep their names") from None
    return key


@retried
def _insert(db: Database, row: dict[str, Any]) -> None:
    with db.write() as c:
        c.execute(insert(keys).values(created_at=db.now(c), **row))


def hashed(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def find(db: Database, key: str) -> Row[Any] | None:
    """The row of a key that is in force."""
    with db.read() as c:
        return c.execute(select(keys).where(keys.c.hash == hashed(key), keys.c.revoked_at.is_(None))).first()


def everyone(db: Database) -> list[Row[Any]]:
    """Every key there was, the oldest first."""
    with db.read() as c:
        return list(c.execute(select(keys).order_by(keys.c.created_at)).all())


def any_made(db: Database) -> bool:
    """Whether the API is closed to those without a key: once there was one it stays so, revoked as it may be."""
    with db.read() as c:
        return c.execute(select(keys.c.id).limit(1)).first() is not None


@retried
def revoke(db: Database, which: str) -> str:
    """Revoke a key by its name, id or prefix; its name. Repeating it changes nothing; raises NotFound."""
    with db.write() as c:
        found = c.execute(select(keys).where((keys.c.name == which) | (keys.c.id == which))).first()
        if found is None:
            prefixed = c.execute(select(keys).where(keys.c.prefix == which[:KEPT])).all()
            found = prefixed[0] if len(prefixed) == 1 and len(which) >= KEPT else None
        if found is None:
            raise NotFound(f"there is no key {which[:KEPT]!r}; `offload keys list` names them")
        if found.revoked_at is None:
            c.execute(update(keys).where(keys.c.id == found.id).values(revoked_at=db.now(c)))
        return str(found.name)
