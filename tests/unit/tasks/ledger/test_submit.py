"""A batch is loaded in bounded commits that nobody sees, and the last commit is the promise."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from tasks.errors import Conflict, GivenUp, PoolError
from tasks.ledger import submit
from tasks.schemas import NewJob
from tasks.tables import AT_ONCE, Batch, Body, Job
from tests.support.waiting import eventually
from tests.unit.ledgers import Ledger, new_jobs


def test_a_batch_is_its_lines(ledger: Ledger) -> None:
    """Every line becomes one queued job with its body, due now, and the batch counts them."""
    batch_id = ledger.submit(3, priority=2, name="mine")
    batch = ledger.batch(batch_id)
    assert (batch.name, batch.state, batch.priority, batch.total, batch.open) == ("mine", "open", 2, 3, 3)
    assert batch.opened_at == ledger.db.time
    assert batch.deadline_at == ledger.db.time + submit.DEFAULT_DEADLINE_S
    jobs = ledger.jobs(batch_id)
    assert [(j.line, j.line_id, j.state, j.priority, j.due_at, j.fence) for j in jobs] == [
        (n, f"j{n}", "queued", 2, AT_ONCE, 0) for n in (1, 2, 3)
    ]
    assert {b.job_id: b.body for b in ledger.all(Body)} == {j.id: b'{"prompt":"x"}' for j in jobs}


def test_commits_are_bounded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """No commit inserts more jobs than its bound, however many lines come, and lines are read as they are needed."""
    monkeypatch.setattr(submit, "COMMIT_JOBS", 4)
    taken: list[int] = []
    commits: list[int] = []

    def lines() -> Iterator[NewJob]:
        for one in new_jobs(10):
            taken.append(one.line)
            yield one

    batch_id, _ = submit.begin(ledger.db, name=None)
    event.listen(ledger.db.engine, "commit", lambda _: commits.append(len(taken)))
    assert submit.add(ledger.db, batch_id, lines()) == 10
    assert commits == [4, 8, 10]
    submit.open_batch(ledger.db, batch_id, 10)
    assert [j.line for j in ledger.jobs(batch_id)] == list(range(1, 11))


def test_jobs_that_share_a_prefix_share_a_rank(ledger: Ledger) -> None:
    """A job's rank is the line of the first with its prefix, so that they run side by side."""
    batch_id = ledger.submit(6, prefixes=[11, None, 22, 11, 22, None])
    assert [j.rank for j in ledger.jobs(batch_id)] == [1, 2, 3, 1, 3, 6]


def test_remembered_prefixes_are_bounded(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of any size costs bounded memory; a forgotten prefix only starts a new rank."""
    monkeypatch.setattr(submit, "PREFIXES", 2)
    batch_id = ledger.submit(5, prefixes=[1, 2, 1, 3, 3])
    assert [j.rank for j in ledger.jobs(batch_id)] == [1, 2, 1, 4, 4]


def test_a_loading_batch_is_hidden(ledger: Ledger) -> None:
    """Nothing of a batch runs before its last commit."""
    batch_id = ledger.submit(3, opened=False)
    ledger.worker()
    assert ledger.fill() == 0
    submit.open_batch(ledger.db, batch_id, 3)
    assert ledger.fill() == 3


def test_a_batch_without_lines_ends_as_it_opens(ledger: Ledger) -> None:
    """Nobody waits for a batch that has nothing to do."""
    assert ledger.batch(ledger.submit(0)).state == "finished"


def test_the_same_key_with_the_same_body_is_the_same_batch(ledger: Ledger) -> None:
    """A repeated submit does nothing twice, while the batch is open and after its end."""
    first = ledger.submit(0, key="k", body_hash="h")
    assert submit.begin(ledger.db, name=None, key="k", body_hash="h") == (first, False)
    second = ledger.submit(1, key="k2", body_hash="h")
    assert submit.begin(ledger.db, name=None, key="k2", body_hash="h") == (second, False)
    assert len(ledger.all(Batch)) == 2


def test_the_same_key_with_another_body_is_a_conflict(ledger: Ledger) -> None:
    """The conflict names the batch that has the key, and nothing is submitted."""
    first = ledger.submit(1, key="k", body_hash="h")
    with pytest.raises(Conflict, match=first):
        submit.begin(ledger.db, name=None, key="k", body_hash="other")
    assert len(ledger.all(Batch)) == 1


def test_batches_without_a_key_are_never_the_same(ledger: Ledger) -> None:
    """Only a key makes two submits one."""
    assert ledger.submit(1, body_hash="h") != ledger.submit(1, body_hash="h")


def test_a_batch_without_a_key_that_cannot_begin_is_no_other_one(ledger: Ledger) -> None:
    """What the database refuses is told; it is not taken for a batch that has no key either."""
    ledger.submit(1)
    with pytest.raises(IntegrityError):
        submit.begin(ledger.db, name=None, priority=None)  # type: ignore[arg-type]


def test_an_abandoned_load_is_replaced(ledger: Ledger) -> None:
    """A submit that died before its promise does not keep its key."""
    dead = ledger.submit(3, key="k", body_hash="h", opened=False)
    ledger.wait(submit.LOADING_SILENT_S + 1)
    new, fresh = submit.begin(ledger.db, name=None, key="k", body_hash="h")
    assert fresh
    assert new != dead
    assert not ledger.all(Job)


def test_a_submit_waits_for_the_same_one_under_way(ledger: Ledger) -> None:
    """Two submits of one key at once: the second answers with the first's batch once that is open."""
    first = ledger.submit(2, key="k", body_hash="h", opened=False)
    found: list[tuple[str, bool]] = []
    other = threading.Thread(target=lambda: found.append(submit.begin(ledger.db, name=None, key="k", body_hash="h")))
    other.start()
    submit.open_batch(ledger.db, first, 2)
    other.join()
    assert found == [(first, False)]


def test_two_submits_of_a_new_key_make_one_batch(ledger: Ledger) -> None:
    """Whoever comes first begins; all others get its batch."""
    found: list[tuple[str, bool]] = []

    def run() -> None:
        batch_id, fresh = submit.begin(ledger.db, name=None, key="k", body_hash="h")
        if fresh:
            submit.open_batch(ledger.db, batch_id, 0)
        found.append((batch_id, fresh))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(found) == 4, "every submit is answered")
    assert len({batch_id for batch_id, _ in found}) == 1
    assert [fresh for _, fresh in found].count(True) == 1


def test_a_load_that_was_given_up_cannot_go_on(ledger: Ledger) -> None:
    """A submit that was silent too long is told so, and leaves nothing half written."""
    batch_id = ledger.submit(3, opened=False)
    submit.drop_loading(ledger.db, batch_id)
    with pytest.raises(PoolError, match="submit again"):
        submit.add(ledger.db, batch_id, new_jobs(1))
    with pytest.raises(PoolError, match="submit again"):
        submit.open_batch(ledger.db, batch_id, 0)
    assert not ledger.all(Job)
    assert not ledger.all(Body)


def test_nothing_is_added_to_an_open_batch(ledger: Ledger) -> None:
    """What was promised does not grow, and is not promised twice."""
    batch_id = ledger.submit(1)
    with pytest.raises(PoolError):
        submit.add(ledger.db, batch_id, new_jobs(2))
    with pytest.raises(PoolError):
        submit.open_batch(ledger.db, batch_id, 1)
    assert ledger.batch(batch_id).total == 1


def test_dropping_takes_bounded_steps(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the load, no other writer waits long behind its end."""
    batch_id = ledger.submit(10, opened=False)
    monkeypatch.setattr(submit, "COMMIT_JOBS", 4)
    commits: list[int] = []
    event.listen(ledger.db.engine, "commit", lambda _: commits.append(1))
    submit.drop_loading(ledger.db, batch_id)
    assert len(commits) == 4
    assert not ledger.all(Batch)
    assert not ledger.all(Body)


def test_a_load_half_dropped_cannot_go_on(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once some of it is dropped, its loader neither adds to it nor opens it, whatever it counts."""
    batch_id = ledger.submit(10, opened=False)
    monkeypatch.setattr(submit, "COMMIT_JOBS", 4)
    assert submit._drop_some(ledger.db, batch_id)
    with pytest.raises(GivenUp):
        submit.open_batch(ledger.db, batch_id, 10)
    with pytest.raises(GivenUp):
        submit.add(ledger.db, batch_id, new_jobs(1))
    submit.drop_loading(ledger.db, batch_id)


def test_a_loader_adds_to_its_own_lines_only(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another has added to the same batch, nothing of this one comes in beside it, and it is not opened."""
    monkeypatch.setattr(submit, "COMMIT_JOBS", 2)
    batch_id, _ = submit.begin(ledger.db, name=None)

    def lines() -> Iterator[NewJob]:
        for one in new_jobs(6):
            if one.line == 1:
                submit.add(ledger.db, batch_id, new_jobs(2))
            yield one

    with pytest.raises(GivenUp):
        submit.add(ledger.db, batch_id, lines())
    with pytest.raises(GivenUp):
        submit.open_batch(ledger.db, batch_id, 6)
    assert [j.line for j in ledger.jobs(batch_id)] == [1, 2]


def test_only_a_loading_batch_can_be_dropped(ledger: Ledger) -> None:
    """A promise cannot be taken back."""
    batch_id = ledger.submit(2)
    submit.drop_loading(ledger.db, batch_id)
    assert ledger.states(batch_id) == {"queued": 2}


def test_a_failing_line_leaves_whole_commits_only(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """When reading breaks off, what is there adds up and is never seen."""
    monkeypatch.setattr(submit, "COMMIT_JOBS", 2)
    batch_id, _ = submit.begin(ledger.db, name=None)

    def lines() -> Iterator[NewJob]:
        yield from new_jobs(3)
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="gone"):
        submit.add(ledger.db, batch_id, lines())
    assert ledger.batch(batch_id).total == len(ledger.jobs(batch_id)) == 2
    assert ledger.batch(batch_id).state == "loading"
