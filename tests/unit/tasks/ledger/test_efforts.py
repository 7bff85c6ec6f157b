"""What is asked often, or while somebody waits, reads no more of a ledger with a long history than of a young one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import insert
from sqlmodel import SQLModel

from tasks.errors import QueueFull
from tasks.ledger import api_batches, audits, endings, notices, reading
from tasks.ledger.api_batches import Phase, Whose
from tasks.ledger.events import tell
from tasks.ledger.reading import PAGE
from tasks.notices import Kind, News
from tasks.states import BatchState, JobState
from tasks.tables import ApiKey, Audit
from tests.unit.databases import START
from tests.unit.efforts import TIMES, effort
from tests.unit.ledgers import Ledger, outcome

pytestmark = pytest.mark.slow

#: of batches and the like: a young ledger, and an old one
FEW, MANY = 40, 4_000
#: the HTTP API's
MINE = Whose("mine")


def test_the_newest_batches_are_found_by_their_time(ledger: Ledger) -> None:
    """`offload batches` reads those that it shows."""
    grows_not(ledger, lambda: reading.recent_batches(ledger.db, 20))


def test_a_page_of_batches_is_found_by_owner_and_time(ledger: Ledger) -> None:
    """GET /v1/batches reads a page of the caller's, wherever it begins, and of nobody else's."""
    grows_not(ledger, lambda: api_batches.page(ledger.db, MINE, None, 20))
    grows_not(ledger, lambda: api_batches.page(ledger.db, MINE, old_id(FEW // 2), 20))


def test_a_page_of_an_endpoint_is_found_by_owner_and_time(ledger: Ledger) -> None:
    """And so does GET /v1/messages/batches."""
    grows_not(ledger, lambda: api_batches.of_endpoint(ledger.db, MINE, "/v1/embeddings", 20))
    grows_not(ledger, lambda: api_batches.of_endpoint(ledger.db, MINE, "/v1/embeddings", 20, after=old_id(FEW // 2)))


def test_whether_there_is_room_is_asked_of_open_batches(ledger: Ledger) -> None:
    """What a key submitted long ago costs none of its submits."""
    key = {"id": "mine", "name": "mine", "prefix": "", "hash": "", "scopes": [], "created_at": START, "most_queued": 9}

    def ask() -> None:
        api_batches.check_room(ledger.db, "mine", 9)
        api_batches.check_fits(ledger.db, "mine", 6)

    def make_key() -> None:
        with ledger.db.write() as c:
            c.execute(insert(ApiKey.__table__).values(**key))  # type: ignore[attr-defined]

    grows_not(ledger, ask, make_key)
    with pytest.raises(QueueFull):
        api_batches.check_fits(ledger.db, "mine", 7)  # three there are


def test_news_are_compared_with_what_was_told_lately(ledger: Ledger) -> None:
    """Making a notice reads no notices of last month."""

    def news() -> None:
        with ledger.db.write() as c:
            tell(c, ledger.db.time, News(Kind.BACKLOG, "small", {}))
        notices.make(ledger.db, ["HOOK"], 900.0)

    grows_not(ledger, news)


def test_a_report_is_told_numbers_of_audits(ledger: Ledger) -> None:
    """Of audits that are alike it is told how many there are."""
    told = []
    for n in (FEW, MANY):
        batch_id = ledger.submit(n)
        endings.cancel(ledger.db, batch_id)
        common = {"batch_id": batch_id, "stratum": "s", "category": "summarize", "model_class": "small", "model": "m"}
        said = {"state": "judged", "verdict": "agree", "probability": 0.1, "created_at": START, "judged_at": START}
        with ledger.db.write() as c:
            rows = [{"job_id": job.id, **common, **said} for job in ledger.jobs(batch_id)]
            c.execute(insert(Audit.__table__), rows)  # type: ignore[attr-defined]
        found = audits.opinions(ledger.db)
        told.append(len(found))
    assert told == [1, 1]
    assert found[0].n == FEW + MANY


def test_why_jobs_wait_is_asked_of_the_first_of_them(ledger: Ledger) -> None:
    """`offload status` of a batch that waits reads few of its jobs, and knows why one was put off."""
    took = []
    for n in (100, MANY):
        ledger.db.anew()
        batch_id = ledger.submit(n)
        took.append(effort(ledger.db, lambda b=batch_id: why(ledger, b)))  # type: ignore[misc]
    of_first = TIMES * PAGE // (1 if ledger.db.is_postgres else 10)  # fewer than ten steps a row
    assert took[1] < 3 * took[0] + of_first
    ledger.worker()
    ledger.fill()
    first = ledger.claim(ledger.worker())[0]
    ledger.record(outcome(first, JobState.QUEUED, error_message="busy", delay=60.0))
    assert why(ledger, batch_id) == (True, "busy")


def why(ledger: Ledger, batch_id: str) -> tuple[bool, str | None]:
    """Whether its jobs may go to none but the cloud's server, and the error of one that waits."""
    held_back = reading.all_held_back(ledger.db, batch_id, "small", ["cloud"])
    return held_back, reading.last_error(ledger.db, batch_id, "small")


def grows_not(ledger: Ledger, ask: Callable[[], object], before: Callable[[], object] = lambda: None) -> None:
    """Asking costs an old ledger about what it costs a young one. before: what else there is in both."""
    took = []
    for n in (FEW, MANY):
        ledger.db.anew()
        grow_old(ledger, n)
        before()
        took.append(effort(ledger.db, ask))
    assert took[1] < 3 * took[0] + 100


def old_id(number: int) -> str:
    """One of the batches of history."""
    return f"batch_{number:08d}"


def grow_old(ledger: Ledger, n: int) -> None:
    """So many batches that are over, half of them mine, so many notices that were sent; and one open batch of mine."""
    open_id = ledger.submit(3)
    ended: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = [api_batch(open_id, "mine", START)]
    for number in range(n):
        at = START - 10_000 - n + number
        over = {"state": BatchState.FINISHED, "created_at": at, "touched_at": at, "opened_at": at, "finished_at": at}
        ended.append({"id": old_id(number), "deadline_at": at, **over})
        asked.append(api_batch(old_id(number), ("mine", "theirs")[number % 2], at))
    sent = [
        {"receiver": "HOOK", "kind": "fallback", "subject": "s", "state": "sent", "due_at": at, "times": 1, "tries": 1}
        | {"detail": {}, "first_at": at, "last_at": at, "made_at": at, "sent_at": at}
        for at in (START - 10_000 - n + number for number in range(n))
    ]
    with ledger.db.write() as c:
        for name, rows in (("batches", ended), ("api_batches", asked), ("notices", sent)):
            c.execute(insert(SQLModel.metadata.tables[name]), rows)


def api_batch(batch_id: str, owner: str, at: float) -> dict[str, Any]:
    """The row of a batch that was submitted over HTTP."""
    own = {"id": batch_id, "owner": owner, "state": Phase.LOADED, "endpoint": "/v1/embeddings", "window": "24h"}
    return own | {"input_file_id": "file", "created_at": at, "expires_at": at, "said": {}, "gone": [], "told": []}
