"""Claims while the ledger is away, and what broken ones leave behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from tasks.ledger import claims
from tests.support.waiting import eventually
from tests.unit.ledgers import TIMES, Ledger
from workers import claiming
from workers.claiming import Claiming
from workers.hand import Hand

BROKEN = OperationalError("COMMIT", None, Exception("server closed the connection unexpectedly"))


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest) -> Ledger:
    """On both databases."""
    return Ledger(request.getfixturevalue(f"{request.param}_db"))


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Breaks the next claims: before their commit, or in it, when nobody knows."""
    monkeypatch.setattr(claiming, "WAITS_S", (0.0, 0.0))
    real = claims.claim

    def arrange(*commits: bool) -> None:
        left = list(commits)

        def claim(*args: Any, **kwargs: Any) -> Any:
            if not left:
                return real(*args, **kwargs)
            if left.pop(0):
                real(*args, **kwargs)
            raise BROKEN

        monkeypatch.setattr(claims, "claim", claim)

    return arrange


def sent(ledger: Ledger, n: int) -> tuple[Claiming, list[str], str]:
    """A worker's claims, the slices that were sent to it, and their batch."""
    batch_id = ledger.submit(n)
    me = ledger.worker(capacity=n)
    ledger.fill()
    slices = [s[0] for s in ledger.sender.slices]
    return Claiming(ledger.db, me, Hand(), TIMES.lease), slices, batch_id


def test_a_ledger_that_comes_back_is_waited_for(ledger: Ledger, breaks: Callable[..., None]) -> None:
    """A claim that could not be made is made when the ledger is back; nothing is left to settle."""
    mine, slices, batch_id = sent(ledger, 4)
    breaks(False, False)
    assert mine.claim(slices[0], started=True)
    assert mine.settle() == 0
    assert ledger.states(batch_id)["running"] == len(mine._hand)


def test_a_ledger_that_stays_away_is_given_up(ledger: Ledger, breaks: Callable[..., None]) -> None:
    """The sweep sends the slice again."""
    mine, slices, _ = sent(ledger, 1)
    breaks(False, False, False)
    with pytest.raises(OperationalError):
        mine.claim(slices[0], started=True)


def test_what_a_broken_commit_took_waits_again_without_a_crash(ledger: Ledger, breaks: Callable[..., None]) -> None:
    """Nobody runs those jobs; what is in hand, of the same process, stays there."""
    mine, slices, batch_id = sent(ledger, 8)
    in_hand = mine.claim(slices[0], started=True)
    breaks(True)
    assert mine.claim(slices[1], started=True) == []
    assert mine.settle() > 0
    assert mine.settle() == 0
    running = [j for j in ledger.jobs(batch_id) if j.state == "running"]
    assert {j.id for j in running} == {h.job.id for h in in_hand}
    assert {j.crashes for j in ledger.jobs(batch_id)} == {0}
    assert claims.renew(ledger.db, mine._hand.pairs(), TIMES.lease) == {h.job.id for h in in_hand}
    ledger.check()


def test_a_claim_under_way_is_not_taken_for_a_broken_one(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its commit and the hand its jobs are in nobody's hand, and are its all the same."""
    mine, slices, _ = sent(ledger, 2)
    mine.doubtful = True
    taken, go = threading.Event(), threading.Event()
    real = claims.claim

    def slow(*args: Any, **kwargs: Any) -> Any:
        jobs = real(*args, **kwargs)
        taken.set()
        go.wait(10)
        return jobs

    monkeypatch.setattr(claims, "claim", slow)
    thread = threading.Thread(target=mine.claim, args=(slices[0],), kwargs={"started": True})
    thread.start()
    eventually(taken.is_set, "the claim is in its commit")
    assert mine.settle() == 0
    go.set()
    thread.join()
    assert mine.settle() == 0
    assert claims.renew(ledger.db, mine._hand.pairs(), TIMES.lease) == set(mine._hand.pairs()) != set()
