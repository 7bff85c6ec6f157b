"""Uploaded batches on their way into the ledger, whoever loads them, and however many at once."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from api.use_cases import openai_texts as texts
from api.use_cases import uploads
from api.use_cases.pool import Pool
from api.use_cases.validating import validate
from tasks.errors import Conflict, QueueFull, UsageError
from tasks.ledger import api_batches, api_keys, endings, submit, sweeping
from tasks.ledger.api_batches import Whose
from tasks.ledger.api_keys import Scope
from tasks.settings import Settings
from tests.support.at_once import at_once
from tests.unit.databases import ClockedDatabase
from tests.unit.ledgers import Ledger

#: times that loaders are let loose on each other; each time they meet somewhere else
ROUNDS = 5


@pytest.fixture(params=["sqlite_db", "postgres_db"])
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """A ledger in either database."""
    db: ClockedDatabase = request.getfixturevalue(request.param)
    made = Ledger(db)
    yield made
    made.check()


@pytest.fixture
def pool(ledger: Ledger, tmp_path: Path) -> Pool:
    """A pool over it; Redis is not there."""
    made = Pool(Settings(home=tmp_path, redis_url="redis://127.0.0.1:1/0"))
    made.db = ledger.db
    return made


def batch_of(pool: Pool, n: int, owner: str = "", before: bytes = b"") -> str:
    """A batch of a file of n lines, which is to be validated. before: what the file begins with."""
    body = {"model": "small", "messages": [{"role": "user", "content": "A note."}]}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    content = before + b"\n".join(orjson.dumps({"custom_id": f"line-{i}", **line}) for i in range(n))
    file = uploads.keep(pool, io.BytesIO(content), "a.jsonl", owner)
    values: dict[str, Any] = {"owner": owner, "endpoint": "/v1/chat/completions", "input_file_id": file.id}
    seen, _ = api_batches.create(pool.db, {**values, "window": "24h", "said": {}}, 3600.0)
    return str(seen.api.id)


def state(pool: Pool, batch_id: str) -> str:
    seen = api_batches.seen(pool.db, batch_id, Whose(everybody=True))
    assert seen is not None
    return str(seen.api.state)


@pytest.mark.slow
def test_two_processes_load_one_batch(ledger: Ledger, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two who take each other for dead and begin it anew, one loads it: every line is there once."""
    monkeypatch.setattr(submit, "LOADING_SILENT_S", -1.0)
    monkeypatch.setattr(submit, "COMMIT_JOBS", 3)
    for _ in range(ROUNDS):
        batch_id = batch_of(pool, 40)
        at_once(*[partial(validate, pool, batch_id)] * 2)
        while state(pool, batch_id) == "validating":  # as the next look does
            validate(pool, batch_id)
        assert [j.line for j in ledger.jobs(batch_id)] == list(range(1, 41))
        assert (ledger.batch(batch_id).state, ledger.batch(batch_id).total) == ("open", 40)


def key_of(pool: Pool, most: int) -> str:
    """A key's owner."""
    return str(api_keys.find(pool.db, api_keys.make(pool.db, "few", [Scope.SUBMIT], most_queued=most)).id)  # type: ignore[union-attr]


def test_a_batch_larger_than_its_key_may_have(ledger: Ledger, pool: Pool) -> None:
    """It fails with the reason, and nothing of it is loaded; one that fits is."""
    owner = key_of(pool, 3)
    fits, exceeds = batch_of(pool, 2, owner), batch_of(pool, 2, owner)
    with pytest.raises(QueueFull):  # each counts as one before it is loaded
        api_batches.check_room(pool.db, owner, 2)
    validate(pool, fits)
    validate(pool, exceeds)
    assert (state(pool, fits), state(pool, exceeds)) == ("loaded", "failed")
    seen = api_batches.seen(pool.db, exceeds, Whose(owner))
    assert seen is not None
    assert seen.row is None
    assert [error["code"] for error in seen.api.errors] == ["queue_limit"]
    assert len(ledger.jobs(fits)) == 2


def test_batches_of_a_key_opened_at_once(ledger: Ledger, pool: Pool) -> None:
    """However many of its batches are opened at the same moment, a key never has more jobs than it may."""
    owner = key_of(pool, 5)
    made = [batch_of(pool, 2, owner) for _ in range(4)]
    at_once(*(partial(validate, pool, one) for one in made))
    assert sorted(state(pool, one) for one in made) == ["failed", "failed", "loaded", "loaded"]


class Dies(BaseException):
    """The process ends here."""


def test_a_cancel_while_it_is_loaded(ledger: Ledger, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancel that was acknowledged while lines were loaded holds, though the API dies as soon as they are."""
    batch_id = batch_of(pool, 3)
    load = submit.add

    def add(*given: Any) -> int:
        added = load(*given)
        api_batches.ask_to_cancel(pool.db, batch_id)
        return added

    def die(*given: Any) -> None:
        raise Dies

    monkeypatch.setattr(submit, "add", add)
    monkeypatch.setattr(endings, "cancel", die)
    with pytest.raises(Dies):
        validate(pool, batch_id)
    assert state(pool, batch_id) == "loaded"
    sweeping.expire_batches(pool.db)
    assert [job.state for job in ledger.jobs(batch_id)] == ["cancelled"] * 3
    assert ledger.batch(batch_id).state == "cancelled"


def test_a_file_is_not_deleted_under_its_batch(ledger: Ledger, pool: Pool) -> None:
    """While its lines are checked a file cannot be deleted; once they are in the ledger it can, and they stay."""
    batch_id = batch_of(pool, 2)
    seen = api_batches.seen(pool.db, batch_id, Whose())
    assert seen is not None
    file_id = seen.api.input_file_id
    with pytest.raises(Conflict, match=batch_id):
        uploads.drop(pool, file_id)
    validate(pool, batch_id)
    uploads.drop(pool, file_id)
    assert not uploads.path_of(pool, file_id).exists()
    assert state(pool, batch_id) == "loaded"
    assert len(ledger.jobs(batch_id)) == 2


def test_content_that_nobody_has(ledger: Ledger, pool: Pool) -> None:
    """What a killed upload or deletion left is deleted once it is old; files there are, and uploads under way, stay."""
    kept = [uploads.keep(pool, io.BytesIO(b"{}"), "a.jsonl", "").id for _ in range(2)]
    left = ["file-unwritten", f"file-cut{uploads.PARTIAL}"]
    for name in left:
        uploads.path_of(pool, name).write_bytes(b"{}")
    under_way = uploads.path_of(pool, f"file-young{uploads.PARTIAL}")
    under_way.write_bytes(b"{}")
    for name in (kept[0], *left):
        os.utime(uploads.path_of(pool, name), times=(0, time.time() - uploads.STRAY_S - 60))
    assert uploads.drop_expired(pool) == 0
    there = {path.name for path in under_way.parent.iterdir()}
    assert there == {*kept, under_way.name}


def test_content_beside_a_ledger_without_files(ledger: Ledger, pool: Pool) -> None:
    """A home that is pointed at an empty ledger by mistake keeps the files of its own one, however old."""
    path = uploads.path_of(pool, "file-of-another-ledger")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"{}")
    os.utime(path, times=(0, time.time() - uploads.STRAY_S - 60))
    assert uploads.drop_expired(pool) == 0
    assert path.exists()


def test_a_first_line_that_is_no_json(ledger: Ledger, pool: Pool) -> None:
    """A file is refused when none of its lines is JSON; a single line that is not is a fault of its batch."""
    batch_id = batch_of(pool, 2, before=b"\n{nonsense\n")
    validate(pool, batch_id)
    seen = api_batches.seen(pool.db, batch_id, Whose(everybody=True))
    assert seen is not None
    assert [(error["code"], error["line"]) for error in seen.api.errors] == [("invalid_json_line", 2)]
    for content, words in ((b"\n{nonsense\n{\xff\n", texts.NOT_JSONL), (b"\n \n", texts.EMPTY)):
        with pytest.raises(UsageError, match=words):
            uploads.keep(pool, io.BytesIO(content), "a.jsonl", "")
