"""What the HTTP API keeps in the ledger: uploaded files, and batches from before their lines are checked.

    validating ──► loaded         its row in `batches`, under the same id, says the rest
         ├───────► failed         its lines have faults, which are kept
         └───────► cancelled      before anything of it was loaded

`said` is what was said of all its lines: tier, app; and of a batch that has ended SIZES, the bytes of its files.
A batch is its owner's: the key's under which it was submitted, or everybody's where the API is open.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, delete, exists, func, insert, or_, select, true, tuple_, update
from sqlalchemy.engine import Row
from sqlalchemy.exc import IntegrityError

from tasks.errors import Conflict, QueueFull
from tasks.ledger.database import Database, insert_new, retried
from tasks.ledger.submit import new_batch_id
from tasks.states import BatchState
from tasks.tables import ApiBatch, ApiFile, ApiKey, Batch, Job

#: file id -> bytes, once they were counted
SIZES = "sizes"
#: batches that `deliveries` looks at
LOOKED_AT = 1_000

files = ApiFile.__table__  # type: ignore[attr-defined]
api_batches = ApiBatch.__table__  # type: ignore[attr-defined]
api_keys = ApiKey.__table__  # type: ignore[attr-defined]
batches = Batch.__table__  # type: ignore[attr-defined]
jobs = Job.__table__  # type: ignore[attr-defined]


class Phase(StrEnum):
    """How far a batch came on its way into the ledger."""

    VALIDATING = "validating"
    LOADED = "loaded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Whose:
    """Whose files and batches are meant. everybody: all there are, as an administrator sees them."""

    owner: str = ""
    everybody: bool = False

    def of(self, column: Any) -> ColumnElement[bool]:
        """The condition on a column that holds owners."""
        return true() if self.everybody else column == self.owner


@dataclass(frozen=True, slots=True)
class Seen:
    """A batch as the API shows it. api: its row here. row: its row in `batches`, once it is loaded."""

    api: Row[Any]
    row: Row[Any] | None


# --- files ----------------------------------------------------------------------------------------------------


def new_file_id() -> str:
    """An id nobody can guess."""
    return f"file-{secrets.token_hex(12)}"


@retried
def keep_file(db: Database, file_id: str, owner: str, filename: str, size: int, lives_s: float) -> Row[Any]:
    """Enter a file whose content is on disk; its row."""
    with db.write() as c:
        now = db.now(c)
        values = {"id": file_id, "owner": owner, "filename": filename, "bytes": size, "created_at": now}
        c.execute(insert(files).values(expires_at=now + lives_s, **values))
        return c.execute(select(files).where(files.c.id == file_id)).one()


def file(db: Database, file_id: str, whose: Whose) -> Row[Any] | None:
    """A file's row; None where there is none, or it is another's or expired."""
    with db.read() as c:
        query = select(files).where(files.c.id == file_id, whose.of(files.c.owner), files.c.expires_at > db.now(c))
        return c.execute(query).first()


def list_files(db: Database, whose: Whose) -> list[Row[Any]]:
    """Every file there is, the newest first."""
    with db.read() as c:
        query = select(files).where(whose.of(files.c.owner), files.c.expires_at > db.now(c))
        return list(c.execute(query.order_by(files.c.created_at.desc(), files.c.id.desc())).all())


@retried
def drop_file(db: Database, file_id: str) -> None:
    """Forget a file; raises Conflict while lines of it are checked: without it that batch would fail."""
    with db.write() as c:
        made_of_it = api_batches.c.input_file_id == file_id, api_batches.c.state == Phase.VALIDATING
        if (batch_id := c.execute(select(api_batches.c.id).where(*made_of_it).limit(1)).scalar()) is not None:
            raise Conflict(f"batch {batch_id} is made of this file and still validating; delete it after that")
        c.execute(delete(files).where(files.c.id == file_id))


def expired_files(db: Database) -> list[str]:
    """The files whose time is over."""
    with db.read() as c:
        return list(c.execute(select(files.c.id).where(files.c.expires_at <= db.now(c))).scalars())


def file_ids(db: Database) -> set[str]:
    """The ids of all files that the ledger knows, expired ones too."""
    with db.read() as c:
        return set(c.execute(select(files.c.id)).scalars())


# --- batches --------------------------------------------------------------------------------------------------


def create(db: Database, values: Mapping[str, Any], lives_s: float) -> tuple[Seen, bool]:
    """Enter a batch that is to be validated: (it, True), or the one that its request key has already, and False.

    Raises Conflict where that key was used for something else.
    """
    while True:
        try:
            return _create(db, new_batch_id(), values, lives_s), True
        except IntegrityError:
            key = values.get("request_key")
            with db.read() as c:
                row = c.execute(select(api_batches).where(api_batches.c.request_key == key)).first()
            if key is None or row is None:
                continue
            if row.request_hash != values.get("request_hash"):
                raise Conflict("the idempotency key was used for another request; use a new key") from None
            return seen(db, row.id, Whose(everybody=True)) or Seen(row, None), False


@retried
def _create(db: Database, batch_id: str, values: Mapping[str, Any], lives_s: float) -> Seen:
    with db.write() as c:
        now = db.now(c)
        times = {"created_at": now, "expires_at": now + lives_s}
        new = {"state": Phase.VALIDATING, "gone": [], "told": [], "tries": 0}
        c.execute(insert(api_batches).values(id=batch_id, **new, **times, **values))
        return Seen(c.execute(select(api_batches).where(api_batches.c.id == batch_id)).one(), None)


# --- telling their ends ---------------------------------------------------------------------------------------


@retried
def to_tell(db: Database, lease_s: float) -> Seen | None:
    """A batch whose end is to be told now, for so many seconds this caller's alone; None when there is none."""
    over = or_(
        api_batches.c.state.in_((Phase.FAILED, Phase.CANCELLED)),
        batches.c.state.in_((BatchState.FINISHED, BatchState.CANCELLED)),
    )
    with db.write(durable=False) as c:
        now = db.now(c)
        query = (
            select(api_batches.c.id)
            .outerjoin(batches, batches.c.id == api_batches.c.id)
            .where(api_batches.c.tell_at <= now, over)
            .order_by(api_batches.c.tell_at)
            .limit(1)
        )
        found = c.execute(query).scalar()
        if found is None:
            return None
        mine = update(api_batches).where(api_batches.c.id == found, api_batches.c.tell_at <= now)
        if c.execute(mine.values(tell_at=now + lease_s)).rowcount != 1:
            return None
        api = c.execute(select(api_batches).where(api_batches.c.id == found)).one()
        return Seen(api, c.execute(select(batches).where(batches.c.id == found)).first())


@retried
def told(db: Database, batch_id: str, targets: Sequence[str], again_in_s: float | None) -> None:
    """Note which webhooks know its end, and when the others are tried again; None: no more."""
    with db.write() as c:
        at = None if again_in_s is None else db.now(c) + again_in_s
        values = {"told": list(targets), "tell_at": at, "tries": api_batches.c.tries + 1}
        c.execute(update(api_batches).where(api_batches.c.id == batch_id).values(**values))


def deliveries(db: Database) -> tuple[frozenset[str], list[frozenset[str]]]:
    """Of the newest batches of files: the webhooks told of any, and those that know of each that is still tried."""
    query = select(api_batches.c.told, api_batches.c.tries, api_batches.c.tell_at)
    query = query.where(api_batches.c.input_file_id != "").order_by(api_batches.c.created_at.desc()).limit(LOOKED_AT)
    with db.read() as c:
        rows = c.execute(query).all()
    waiting = [frozenset(row.told) for row in rows if row.tries and row.tell_at is not None]
    return frozenset(name for row in rows for name in row.told), waiting


def seen(db: Database, batch_id: str, whose: Whose) -> Seen | None:
    """A batch, both rows of one moment; None where there is none, or it is another's."""
    with db.read() as c:
        api = c.execute(select(api_batches).where(api_batches.c.id == batch_id, whose.of(api_batches.c.owner))).first()
        if api is None:
            return None
        row = c.execute(select(batches).where(batches.c.id == batch_id)).first()
    return Seen(api, row)


def page(db: Database, whose: Whose, after: str | None, limit: int) -> list[Seen] | None:
    """The newest batches of files, or those older than `after`; one more than `limit` where there are more.

    None where there is no `after`.
    """
    order = (api_batches.c.created_at.desc(), api_batches.c.id.desc())
    with db.read() as c:
        of_files = whose.of(api_batches.c.owner), api_batches.c.input_file_id != ""
        query = select(api_batches).where(*of_files).order_by(*order).limit(limit + 1)
        if after is not None:
            last = c.execute(
                select(api_batches.c.created_at, api_batches.c.id).where(
                    api_batches.c.id == after, whose.of(api_batches.c.owner)
                )
            ).first()
            if last is None:
                return None
            place = tuple_(api_batches.c.created_at, api_batches.c.id)
            query = query.where(place < (last.created_at, last.id))
        found = c.execute(query).all()
        rows = {r.id: r for r in c.execute(select(batches).where(batches.c.id.in_([f.id for f in found])))}
    return [Seen(f, rows.get(f.id)) for f in found]


def of_endpoint(
    db: Database, whose: Whose, endpoint: str, limit: int, *, after: str | None = None, before: str | None = None
) -> list[Seen] | None:
    """The newest loaded batches of an endpoint, newest first, or those next to one: older than `after`, newer than
    `before`; one more than `limit`, the farthest, where there are more. None where there is no such batch.
    """
    at, id_ = api_batches.c.created_at, api_batches.c.id
    mine = whose.of(api_batches.c.owner), api_batches.c.endpoint == endpoint
    upwards = before is not None
    query = select(api_batches).join(batches, batches.c.id == id_).where(*mine)
    with db.read() as c:
        if (next_to := before or after) is not None:
            last = c.execute(select(at, id_).where(id_ == next_to, *mine)).first()
            if last is None:
                return None
            place, cursor = tuple_(at, id_), (last.created_at, last.id)
            query = query.where(place > cursor if upwards else place < cursor)
        order = (at.asc(), id_.asc()) if upwards else (at.desc(), id_.desc())
        found = c.execute(query.order_by(*order).limit(limit + 1)).all()
        rows = {r.id: r for r in c.execute(select(batches).where(batches.c.id.in_([f.id for f in found])))}
    seen = [Seen(f, rows[f.id]) for f in found]
    return seen[::-1] if upwards else seen


@retried
def forget(db: Database, batch_id: str) -> None:
    """From now on nobody has this batch; its jobs stay in the ledger for as long as any."""
    with db.write() as c:
        c.execute(delete(api_batches).where(api_batches.c.id == batch_id))


def own_in(c: Connection, batch_id: str, owner: str, endpoint: str) -> None:
    """Note whose a batch is that was loaded in another way, in the commit that opens it."""
    row = c.execute(select(batches.c.created_at, batches.c.deadline_at).where(batches.c.id == batch_id)).one()
    values = {"id": batch_id, "owner": owner, "state": Phase.LOADED, "endpoint": endpoint, "input_file_id": ""}
    times = {"created_at": row.created_at, "expires_at": row.deadline_at, "loaded_at": row.created_at}
    insert_new(c, api_batches, [{**values, "window": "", "said": {}, "gone": [], "told": [], "tries": 0, **times}])


def enter_in(c: Connection, batch_id: str, owner: str, endpoint: str) -> None:
    """The same of what an owner submits; raises QueueFull where it may not have so many unfinished jobs."""
    own_in(c, batch_id, owner, endpoint)
    _check_room_in(c, owner)


def validating(db: Database) -> list[str]:
    """Batches whose lines are to be checked, the oldest first."""
    query = select(api_batches.c.id).where(api_batches.c.state == Phase.VALIDATING)
    with db.read() as c:
        return list(c.execute(query.order_by(api_batches.c.created_at)).scalars())


def loaded_in(c: Connection, now: float, batch_id: str, model: str | None) -> None:
    """Its jobs are in the ledger with this commit, cancelled if that was asked meanwhile. model: its first line's.

    Raises Conflict where it has failed or was cancelled meanwhile, QueueFull where its owner may not have so many
    unfinished jobs: then nothing of it may be opened.
    """
    mine = api_batches.c.id == batch_id, api_batches.c.state == Phase.VALIDATING
    values = {"state": Phase.LOADED, "loaded_at": now, "model": model}
    told = api_batches.c.owner, api_batches.c.cancelling_at
    row = c.execute(update(api_batches).where(*mine).values(**values).returning(*told)).first()
    if row is None:
        raise Conflict(f"batch {batch_id} is not to be loaded any more")
    _check_room_in(c, row.owner)
    if row.cancelling_at is not None:  # whoever loads it may die before it can cancel it: then the sweep does
        still = batches.c.id == batch_id, batches.c.state == BatchState.OPEN
        c.execute(update(batches).where(*still).values(cancelled_at=now))


@retried
def failed(db: Database, batch_id: str, errors: Sequence[Mapping[str, Any]]) -> None:
    """Its lines have faults, and nothing of it is loaded."""
    with db.write() as c:
        mine = api_batches.c.id == batch_id, api_batches.c.state == Phase.VALIDATING
        values = {"state": Phase.FAILED, "failed_at": db.now(c), "errors": [dict(e) for e in errors]}
        c.execute(update(api_batches).where(*mine).values(**values))


@retried
def cancelled(db: Database, batch_id: str) -> None:
    """It was cancelled before anything of it was loaded."""
    with db.write() as c:
        mine = api_batches.c.id == batch_id, api_batches.c.state == Phase.VALIDATING
        c.execute(update(api_batches).where(*mine).values(state=Phase.CANCELLED, cancelled_at=db.now(c)))


@retried
def ask_to_cancel(db: Database, batch_id: str) -> None:
    """Note that it is to be cancelled; repeating it changes nothing."""
    with db.write() as c:
        at = func.coalesce(api_batches.c.cancelling_at, db.now(c))
        c.execute(update(api_batches).where(api_batches.c.id == batch_id).values(cancelling_at=at))


@retried
def delete_view(db: Database, batch_id: str, file_id: str) -> None:
    """From now on one of its files, which are views, is not there."""
    with db.write() as c:
        query = select(api_batches.c.gone).where(api_batches.c.id == batch_id).with_for_update()
        gone = set(c.execute(query).scalar() or ()) | {file_id}
        c.execute(update(api_batches).where(api_batches.c.id == batch_id).values(gone=sorted(gone)))


def is_used(db: Database, key: str) -> bool:
    """Whether a batch was submitted under an idempotency key."""
    asked = exists().where(api_batches.c.request_key == key), exists().where(batches.c.idempotency_key == key)
    with db.read() as c:
        return bool(c.execute(select(or_(*asked))).scalar())


def size(seen: Seen, file_id: str) -> int | None:
    """Bytes of one of its files, which never change; None where they were not counted yet."""
    found: int | None = seen.api.said.get(SIZES, {}).get(file_id)
    return found


@retried
def keep_sizes(db: Database, sizes: Mapping[str, Mapping[str, int]]) -> None:
    """Note the bytes of files that were counted. sizes: batch -> file -> bytes."""
    with db.write(durable=False) as c:
        query = select(api_batches.c.id, api_batches.c.said).where(api_batches.c.id.in_(list(sizes)))
        for batch_id, said in c.execute(query.order_by(api_batches.c.id).with_for_update()).all():
            counted = {SIZES: said.get(SIZES, {}) | sizes[batch_id]}
            c.execute(update(api_batches).where(api_batches.c.id == batch_id).values(said=said | counted))


def check_room(db: Database, owner: str, most: int) -> None:
    """Raise QueueFull where an owner has `most` unfinished jobs; a batch that is not read yet counts as one."""
    # few, of all owners, and read by their state: of an owner SQLite would read all that it ever submitted
    validating = select(api_batches.c.id, api_batches.c.owner).where(api_batches.c.state == Phase.VALIDATING)
    unread = validating.cte("unread").prefix_with("MATERIALIZED")
    jobs_of = case((batches.c.id.is_(None), 1), else_=batches.c.open)
    query = (
        select(func.coalesce(func.sum(jobs_of), 0))
        .outerjoin_from(unread, batches, batches.c.id == unread.c.id)
        .where(unread.c.owner == owner)
    )
    with db.read() as c:
        unfinished = int(c.execute(query).scalar_one()) + _unfinished(c, owner)
    if unfinished >= most:
        raise QueueFull(f"This key has {unfinished} unfinished jobs, and may have {most}.")


def check_fits(db: Database, owner: str, more: int) -> None:
    """Raise QueueFull where so many more jobs are too many for a key: what is not loaded need not be dropped."""
    with db.read() as c:
        most = c.execute(select(api_keys.c.most_queued).where(api_keys.c.id == owner)).scalar()
        _check_unfinished(c, owner, most, more)


def _check_room_in(c: Connection, owner: str) -> None:
    """Raise QueueFull where a key has more unfinished jobs than it may, with this commit's; its other commits wait."""
    most = c.execute(select(api_keys.c.most_queued).where(api_keys.c.id == owner).with_for_update()).scalar()
    _check_unfinished(c, owner, most, 0)


def _check_unfinished(c: Connection, owner: str, most: int | None, more: int) -> None:
    if most is None:
        return
    unfinished = _unfinished(c, owner) + more
    if unfinished > most:
        raise QueueFull(f"With these jobs this key would have {unfinished} unfinished ones; it may have {most}.")


def _unfinished(c: Connection, owner: str) -> int:
    """Unfinished jobs of an owner's open batches."""
    # of each open batch, whose it is: joined, SQLite would look at all that the owner ever submitted
    whose = select(api_batches.c.owner).where(api_batches.c.id == batches.c.id).scalar_subquery()
    query = select(func.coalesce(func.sum(batches.c.open), 0)).where(batches.c.state == BatchState.OPEN, whose == owner)
    return int(c.execute(query).scalar_one())


def tokens(db: Database, batch_id: str) -> tuple[int, int]:
    """Tokens in and out of a batch's jobs."""
    query = select(func.sum(jobs.c.tokens_in), func.sum(jobs.c.tokens_out)).where(jobs.c.batch_id == batch_id)
    with db.read() as c:
        tokens_in, tokens_out = c.execute(query).one()
    return int(tokens_in or 0), int(tokens_out or 0)
