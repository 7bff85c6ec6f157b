"""Windows are kept full, in the right order, and nothing is lost when a message cannot be sent."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from tasks import dispatch
from tasks.errors import BrokerDown
from tasks.ledger import claims, control, endings, submit
from tasks.states import JobState
from tasks.tables import Job
from tasks.turns import IDLE_WINDOW, WINDOW, slice_size
from tests.unit.efforts import effort
from tests.unit.ledgers import TIMES, Ledger, new_jobs, outcome


def out(ledger: Ledger, *batches: str) -> list[int]:
    """How many jobs of each batch are dispatched or running."""
    return [sum(ledger.states(b)[s] for s in ("dispatched", "running")) for b in batches]


@pytest.mark.parametrize("capacity", [1, 3, 4, 8, 64, 300])
def test_a_window_is_filled_and_not_overfilled(ledger: Ledger, capacity: int) -> None:
    """About twice a worker's calls are dispatched or running, in slices of its size, and a second look adds nothing."""
    batch_id = ledger.submit(2 * WINDOW * capacity + 10)
    ledger.worker(capacity=capacity)
    size = slice_size(capacity)
    sent = ledger.fill()
    assert WINDOW * capacity - size < sent <= WINDOW * capacity
    assert {s[2] for s in ledger.sender.slices} == {size}
    assert ledger.fill() == 0
    assert out(ledger, batch_id) == [sent]


def test_a_message_names_its_slice(ledger: Ledger) -> None:
    """What was sent is what the ledger holds: id, class, count."""
    ledger.submit(3)
    ledger.worker(capacity=16)
    ledger.fill()
    assert ledger.sender.slices == [(s.id, s.model_class, s.jobs) for s in ledger.slices()]
    assert [s.model_class for s in ledger.slices()] == ["small"]
    assert {j.slice_id for j in ledger.all(Job)} == {s.id for s in ledger.slices()}


def test_a_job_that_ends_makes_room_for_the_next(ledger: Ledger) -> None:
    """Running jobs count; ended ones do not."""
    ledger.submit(10)
    me = ledger.worker(capacity=1)
    assert ledger.fill() == WINDOW
    held = ledger.claim(me)
    assert ledger.fill() == 0
    ledger.record(outcome(held[0]))
    assert ledger.fill() == 1


def test_workers_add_up(ledger: Ledger) -> None:
    """The window is that of every live worker of the class; a silent one, or one that takes nothing, is not counted."""
    ledger.submit(100)
    ledger.worker("gone/gpu", capacity=8)
    ledger.wait(TIMES.worker_gone + 1)
    ledger.worker("a/gpu", capacity=4)
    ledger.worker("b/gpu", capacity=6)
    ledger.worker("other/gpu", ["coder"], capacity=50)
    away = ledger.worker("away/gpu", capacity=9)
    ledger.beat(away, consuming=False)
    assert ledger.fill() == WINDOW * (4 + 6)


def test_slices_suit_the_smallest_worker(ledger: Ledger) -> None:
    """Whoever gets a slice can run it at once."""
    ledger.submit(100)
    ledger.worker("a/gpu", capacity=64)
    ledger.worker("b/gpu", capacity=4)
    ledger.fill()
    assert max(s[2] for s in ledger.sender.slices) == slice_size(4)


def test_a_class_without_workers_gets_one_slice_ahead(ledger: Ledger) -> None:
    """A worker that starts finds something to do; more is not sent into the void."""
    batch_id = ledger.submit(100)
    for _ in range(3):
        ledger.fill("coder", "small")
    assert [s[2] for s in ledger.sender.slices] == [IDLE_WINDOW]
    assert out(ledger, batch_id) == [IDLE_WINDOW]


def test_a_batch_smaller_than_the_idle_slice_is_sent(ledger: Ledger) -> None:
    """One job is a slice too."""
    ledger.submit(1)
    assert ledger.fill() == 1


def test_lines_are_sent_in_order_and_equal_prefixes_side_by_side(ledger: Ledger) -> None:
    """Jobs that begin alike run one after another; otherwise the order is the input's."""
    batch_id = ledger.submit(6, prefixes=[7, None, 8, 7, None, 8])
    me = ledger.worker(capacity=1)
    order: list[int] = []
    for _ in range(6):
        ledger.fill()
        for job in ledger.claim(me):
            order.append(job.id)
            ledger.record(outcome(job))
    lines = {j.id: j.line for j in ledger.jobs(batch_id)}
    assert [lines[i] for i in order] == [1, 4, 2, 3, 6, 5]


def test_batches_of_one_priority_take_turns(ledger: Ledger) -> None:
    """A small batch does not wait behind a large one."""
    large = ledger.submit(100)
    ledger.wait(1)
    small = ledger.submit(4)
    ledger.worker(capacity=4)
    ledger.fill()
    assert out(ledger, large, small) == [4, 4]


def test_turns_go_on_from_look_to_look(ledger: Ledger) -> None:
    """With room for one slice a look, two batches are still served alike."""
    first = ledger.submit(50)
    ledger.wait(1)
    second = ledger.submit(50)
    me = ledger.worker(capacity=1)
    for _ in range(10):
        ledger.wait(1)
        ledger.beat(me)
        ledger.fill()
        ledger.record(*map(outcome, ledger.claim(me)))
    done = [ledger.states(b)["done"] for b in (first, second)]
    assert abs(done[0] - done[1]) <= 1


def test_a_small_batch_gets_two_turns_of_three_beside_a_large_one(ledger: Ledger) -> None:
    """In every look; two that are about alike get as much as each other."""
    large = ledger.submit(600)
    ledger.wait(1)
    small, like = ledger.submit(60), ledger.submit(300, model_class="coder")
    other = ledger.submit(100, model_class="coder")
    ledger.worker(capacity=3)
    ledger.worker("b/gpu", ["coder"], capacity=4)
    ledger.fill("small", "coder")
    assert out(ledger, large, small) == [2, 4]
    assert out(ledger, like, other) == [4, 4]


def test_what_hangs_takes_no_turns(ledger: Ledger) -> None:
    """A share is of the calls at once, so a batch of long calls takes no more of a class than one of short ones."""
    long, short = ledger.submit(100), ledger.submit(100)
    me = ledger.worker(capacity=4)
    for _ in range(10):
        ledger.fill()
        ledger.record(*[outcome(job) for job in ledger.claim(me) if job.batch_id == short])
    assert out(ledger, long) == [4]
    assert ledger.states(short)["done"] == 40


def test_a_higher_priority_is_served_first(ledger: Ledger) -> None:
    """The lower one gets what is left of the window."""
    low = ledger.submit(100)
    high = ledger.submit(6, priority=5)
    ledger.worker(capacity=4)
    ledger.fill()
    assert out(ledger, low, high) == [2, 6]


def test_a_higher_priority_takes_unclaimed_slices_back(ledger: Ledger) -> None:
    """What no worker has taken up makes room; what runs goes on; the messages left over claim nothing."""
    low = ledger.submit(100)
    me = ledger.worker(capacity=4)
    ledger.fill()
    sent = [s[0] for s in ledger.sender.slices]
    ledger.sender.slices.clear()
    running = ledger.claim(me, slices=sent[:1])
    high = ledger.submit(100, priority=1)
    for _ in range(10):
        ledger.fill()
    assert out(ledger, high)[0] > 0
    taken_back = [s for s in sent[1:] if s not in {row.id for row in ledger.slices()}]
    assert taken_back
    assert ledger.claim(me, slices=taken_back) == []
    assert ledger.states(low)["running"] == len(running)
    assert sum(out(ledger, low, high)) <= WINDOW * 4


def test_an_equal_priority_takes_nothing_back(ledger: Ledger) -> None:
    """Slices that were sent stay sent for whoever is not more urgent."""
    low = ledger.submit(100)
    ledger.worker(capacity=4)
    ledger.fill()
    ledger.submit(100)
    ledger.submit(100, priority=-1)
    assert ledger.fill() == 0
    assert out(ledger, low) == [WINDOW * 4]


def test_a_retry_is_not_sent_before_it_is_due(ledger: Ledger) -> None:
    """A job that waits for its second attempt takes no room."""
    _, me, (job,) = ledger.running(1)
    ledger.record(outcome(job, JobState.QUEUED, attempts=1, delay=5))
    assert ledger.fill() == 0
    ledger.wait(4.9)
    assert ledger.fill() == 0
    ledger.wait(0.1)
    assert ledger.fill() == 1
    assert ledger.claim(me)[0].attempts == 1


def test_only_open_batches_are_served(ledger: Ledger) -> None:
    """Loading, cancelled and ended batches are not looked at."""
    loading, cancelled = ledger.submit(3, opened=False), ledger.submit(3)
    endings.cancel(ledger.db, cancelled)
    ledger.worker()
    assert ledger.fill() == 0
    assert ledger.states(loading) == {"queued": 3}


def test_a_redis_that_is_away_costs_nothing(ledger: Ledger) -> None:
    """What cannot be sent is queued again, as it was."""
    batch_id = ledger.submit(10)
    ledger.worker()
    before = ledger.jobs(batch_id)
    ledger.sender.down = True
    with pytest.raises(BrokerDown):
        ledger.fill()
    assert ledger.jobs(batch_id) == before
    assert not ledger.slices()
    ledger.sender.down = False
    assert ledger.fill() == WINDOW * 4


def test_a_redis_that_goes_away_keeps_what_it_got(ledger: Ledger) -> None:
    """Slices sent before the fault stay sent; the others go back."""
    batch_id = ledger.submit(10)
    ledger.worker(capacity=1)
    ledger.sender.fails_after = 1
    with pytest.raises(BrokerDown):
        ledger.fill()
    assert ledger.states(batch_id) == {"dispatched": 1, "queued": 9}
    assert [s.id for s in ledger.slices()] == [s[0] for s in ledger.sender.slices]


@pytest.mark.slow
def test_classes_of_one_provider_take_turns(ledger: Ledger) -> None:
    """One class has the provider until another's oldest job has waited 60 s; then they change."""
    small, coder = ledger.submit(500), ledger.submit(500, model_class="coder")
    me = ledger.worker(classes=["small", "coder"], capacity=4)
    served: list[str] = []
    for _ in range(24):
        ledger.fill("small", "coder")
        held = ledger.claim(me)
        served += sorted({job.model_class for job in held})
        ledger.record(*map(outcome, held))
        ledger.wait(10)
        ledger.beat(me)
    changes = sum(a != b for a, b in pairwise(served))
    assert Counter(served) == {"small": 12, "coder": 12}
    assert changes == 3
    assert ledger.states(small)["done"] == ledger.states(coder)["done"]


def test_a_class_that_is_empty_ends_its_turn(ledger: Ledger) -> None:
    """Nobody waits for a turn that is not used."""
    ledger.submit(2)
    coder = ledger.submit(2, model_class="coder")
    me = ledger.worker(classes=["small", "coder"], capacity=4)
    ledger.fill("small", "coder")
    first = {job.model_class for job in ledger.claim(me)}
    ledger.fill("small", "coder")
    assert first | {job.model_class for job in ledger.claim(me)} == {"small", "coder"}
    assert out(ledger, coder) == [2]


def test_a_higher_priority_takes_the_turn(ledger: Ledger) -> None:
    """Urgent work of another class does not wait 60 s."""
    ledger.submit(100)
    me = ledger.worker(classes=["small", "coder"], capacity=4)
    ledger.fill("small", "coder")
    urgent = ledger.submit(3, model_class="coder", priority=1)
    ledger.fill("small", "coder")
    assert out(ledger, urgent) == [3]
    assert ledger.workers()[me.name].turn_class == "coder"


def test_a_class_only_a_worker_knows_is_served(ledger: Ledger) -> None:
    """Who dispatches may have another configuration than who works."""
    batch_id = ledger.submit(3, model_class="theirs")
    me = ledger.worker(classes=["small", "theirs"])
    ledger.submit(1)
    ledger.fill("small")
    ledger.claim(me)
    ledger.fill("small")
    assert out(ledger, batch_id) == [3]


def test_many_batches_are_all_served_in_the_end(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """More batches than one look considers wait for the next look, not forever."""
    monkeypatch.setattr(dispatch, "BATCHES_A_LOOK", 3)
    batches = [ledger.submit(2) for _ in range(8)]
    me = ledger.worker(capacity=4)
    for _ in range(10):
        ledger.fill()
        ledger.record(*map(outcome, ledger.claim(me)))
        ledger.wait(1)
    assert {ledger.batch(b).state for b in batches} == {"finished"}


def test_two_looks_at_once_send_nothing_twice(ledger: Ledger) -> None:
    """A second dispatcher finds the window full."""
    batch_id = ledger.submit(100)
    me = ledger.worker(capacity=4)
    assert ledger.fill() + ledger.fill() == WINDOW * 4
    held = ledger.claim(me)
    assert len({job.id for job in held}) == len(held) == WINDOW * 4
    assert max(j.fence for j in ledger.jobs(batch_id)) == 1


def crashed(ledger: Ledger, batch_id: str, crashes: int, lines: slice) -> None:
    """Some lines were in hand when workers died."""
    with ledger.db.write() as c:
        suspects = [j.id for j in ledger.jobs(batch_id)[lines]]
        c.execute(
            dispatch.jobs.update().where(dispatch.jobs.c.id.in_(suspects)).values(crashes=crashes, taken_back_at=0)
        )


def test_what_a_dead_worker_held_goes_first(ledger: Ledger) -> None:
    """Before a batch that takes days: what had not started in slices, what had in halves, any number at once."""
    batch_id = ledger.submit(500)
    crashed(ledger, batch_id, 0, slice(200, 204))
    crashed(ledger, batch_id, 1, slice(100, 104))
    ledger.worker(capacity=8)
    ledger.fill()
    held = [s for s in ledger.slices() if s.suspects]
    size = slice_size(8)
    assert sorted(s.jobs for s in held) == [size // 2, size // 2, size]
    crashes = {s.jobs: {j.crashes for j in ledger.all(Job, slice_id=s.id)} for s in held}
    assert crashes == {size: {0}, size // 2: {1}}
    assert {j.crashes for s in ledger.slices() if not s.suspects for j in ledger.all(Job, slice_id=s.id)} == {0}


def test_what_nobody_has_taken_up_waits_for_it(ledger: Ledger) -> None:
    """Slices of its priority that are sent and unclaimed come after; more urgent ones, and what runs, go on."""
    urgent, batch_id, paused = ledger.submit(4, priority=1), ledger.submit(500), ledger.submit(4)
    ledger.worker(capacity=8)
    ledger.fill()
    before = {s.id: s.batch_id for s in ledger.slices()}
    crashed(ledger, batch_id, 1, slice(100, 104))
    crashed(ledger, paused, 1, slice(0, 4))
    control.pause(ledger.db, paused)
    ledger.fill()
    after = {s.id for s in ledger.slices()}
    assert {s for s, b in before.items() if s in after} == {s for s, b in before.items() if b == urgent}
    again = {s.id for s in ledger.slices()}
    ledger.fill()
    assert {s.id for s in ledger.slices()} == again, "what waits for a pause to end takes nothing back"


def test_suspects_of_a_second_crash_are_out_one_slice_at_a_time(ledger: Ledger) -> None:
    """They run in no other's company, so more of them would only wait; others go on meanwhile."""
    batch_id = ledger.submit(200)
    crashed(ledger, batch_id, 2, slice(0, 16))
    me = ledger.worker(capacity=16)
    for _ in range(3):
        ledger.fill()
        held = [s for s in ledger.slices() if s.suspects]
        assert [s.jobs for s in held] == [slice_size(16) // 4]
        assert out(ledger, batch_id)[0] > held[0].jobs
        ledger.record(*map(outcome, ledger.claim(me)))


@pytest.mark.parametrize("one_is_out", [False, True])
def test_suspects_in_batches_of_their_own_stop_no_others(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, one_is_out: bool
) -> None:
    """However many wait to run alone: what may run beside them is sent in the same look, and in the next."""
    monkeypatch.setattr(dispatch, "BATCHES_A_LOOK", 3)
    large = ledger.submit(100)
    suspects = [ledger.submit(1) for _ in range(5)]
    for batch_id in suspects:
        crashed(ledger, batch_id, claims.ALONE_CRASHES, slice(0, 1))
    with ledger.db.write() as c:  # it was served when it was the only one
        c.execute(dispatch.batches.update().where(dispatch.batches.c.id == large).values(served_at=ledger.db.time))
    workers = [ledger.worker("a/gpu", capacity=8), ledger.worker("b/gpu", capacity=8)]
    if one_is_out:
        ledger.fill()
        (alone,) = [s.id for s in ledger.slices() if s.suspects]
        assert ledger.claim(workers[0], slices=[alone])
        ledger.record(*map(outcome, ledger.claim(workers[1])))
    ledger.fill()
    assert (sum(out(ledger, *suspects)), out(ledger, large)[0] >= WINDOW * 8) == (1, True)


def test_an_idle_pool_is_not_written_to(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that finds nothing takes no write lock."""
    batch_id, _ = submit.begin(ledger.db, name=None)
    submit.add(ledger.db, batch_id, new_jobs(2))
    monkeypatch.setattr(ledger.db, "write", None)
    assert ledger.fill() == 0
    monkeypatch.undo()


def test_what_a_worker_puts_back_is_sent_again(ledger: Ledger) -> None:
    """A worker that cannot take a slice now gives it to the next."""
    ledger.submit(1)
    ledger.worker()
    ledger.fill()
    claims.put_back(ledger.db, ledger.sender.slices[0][0])
    assert ledger.fill() == 1


@pytest.mark.slow
def test_a_look_takes_no_longer_in_a_large_ledger(ledger: Ledger) -> None:
    """What is sent next is found by indexes, however much waits or is done, once PostgreSQL plans for all alike too."""
    ledger.worker(capacity=4)
    took = []
    for jobs in (40, 1_500):
        endings.cancel(ledger.db, ledger.submit(jobs))
        batch_id = ledger.submit(jobs)
        crashed(ledger, batch_id, 1, slice(8, 12))
        ledger.fill()
        took.append(effort(ledger.db, ledger.fill))
        endings.cancel(ledger.db, batch_id)
    assert took[1] < 3 * took[0]
