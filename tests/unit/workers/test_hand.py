"""The jobs in hand: what is renewed, what is lost, what is nearly over."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from tasks.ledger.claims import Claimed
from tests.unit.workers.jobs import claimed
from workers.hand import Hand, clock

LEASE = 30.0


def job(id_: int, fence: int = 1, batch: str = "b") -> Claimed:
    return replace(claimed(), id=id_, fence=fence, batch_id=batch)


def test_what_is_taken_is_in_hand_until_it_is_forgotten() -> None:
    """A job is renewed from its claim until its outcome is recorded."""
    hand = Hand()
    hand.take([job(1), job(2)], 100.0, LEASE)
    assert (len(hand), hand.pairs()) == (2, {1: 1, 2: 1})
    hand.forget([(1, 1), (9, 9)])
    assert hand.pairs() == {2: 1}


def test_what_ended_is_unrecorded_until_it_is_forgotten() -> None:
    """An outcome that waits for the ledger is known: suspects go in alone only when none does."""
    hand = Hand()
    (held,) = hand.take([job(1)], 100.0, LEASE)
    assert not hand.unrecorded()
    held.ended = True
    assert hand.unrecorded()
    hand.forget([(1, 1)])
    assert not hand.unrecorded()


def test_a_lease_is_never_overrated() -> None:
    """It counts from before the claim or the renewal was asked for, and no late answer shortens it."""
    hand = Hand()
    (held,) = hand.take([job(1)], 100.0, LEASE)
    assert held.lease_until == 130.0
    hand.renewed(hand.pairs(), {1}, 110.0, LEASE)
    assert held.lease_until == 140.0
    hand.renewed(hand.pairs(), {1}, 105.0, LEASE)
    assert held.lease_until == 140.0


def test_what_was_not_renewed_is_lost() -> None:
    """The ledger's word on a pair that was asked for is final."""
    hand = Hand()
    kept, lost = hand.take([job(1), job(2)], 100.0, LEASE)
    assert hand.renewed(hand.pairs(), {1}, 110.0, LEASE) == [lost]
    assert kept.lease_until == 140.0


def test_a_job_claimed_during_the_renewal_is_not_lost() -> None:
    """What was not asked about is neither renewed nor lost, whatever its id."""
    hand = Hand()
    hand.take([job(1)], 100.0, LEASE)
    asked = hand.pairs()
    (new,) = hand.take([job(2)], 101.0, LEASE)
    hand.forget([(1, 1)])
    (again,) = hand.take([job(1, fence=2)], 101.0, LEASE)
    assert hand.renewed(asked, set(), 110.0, LEASE) == []
    assert hand.renewed(asked, {1}, 110.0, LEASE) == []
    assert (new.lease_until, again.lease_until) == (131.0, 131.0)


def test_a_job_that_has_ended_is_not_lost() -> None:
    """Its outcome is with the recorder, and its fence decides there."""
    hand = Hand()
    (held,) = hand.take([job(1)], 100.0, LEASE)
    held.ended = True
    assert hand.renewed(hand.pairs(), set(), 110.0, LEASE) == []


@pytest.mark.parametrize(
    ("left", "dropped", "ended", "overdue"),
    [(10.0, False, False, False), (4.0, False, False, True), (4.0, True, False, False), (4.0, False, True, False)],
)
def test_what_is_nearly_over_is_closed_once(left: float, dropped: bool, ended: bool, overdue: bool) -> None:
    """A call is closed while its lease still holds for the margin, unless that was done already."""
    hand = Hand()
    (held,) = hand.take([job(1)], clock() + left - LEASE, LEASE)
    held.dropped, held.ended = dropped, ended
    assert hand.overdue(5.0) == ([held] if overdue else [])


def test_the_jobs_of_a_batch() -> None:
    """What a cancel drops."""
    hand = Hand()
    hand.take([job(1, batch="a"), job(2, batch="b"), job(3, batch="c")], 0.0, LEASE)
    assert {h.job.id for h in hand.of_batches({"a", "c", "z"})} == {1, 3}


def test_threads_may_take_and_forget_while_others_look() -> None:
    """The heartbeat, the recorder and the pool's threads share the hand."""
    hand = Hand()
    stop = threading.Event()
    wrong: list[BaseException] = []

    def look() -> None:
        try:
            while not stop.is_set():
                hand.renewed(hand.pairs(), set(hand.pairs()), 0.0, LEASE)
                hand.overdue(0.0)
        except BaseException as error:
            wrong.append(error)

    looker = threading.Thread(target=look)
    looker.start()
    for n in range(500):
        hand.take([job(n)], 0.0, LEASE)
        hand.forget([(n - 3, 1)])
    stop.set()
    looker.join()
    assert not wrong
    assert len(hand) == 3
