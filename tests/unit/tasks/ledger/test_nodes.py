"""What is wanted of nodes, and what their workers say of it."""

from __future__ import annotations

from tasks.ledger import nodes
from tasks.ledger.claims import Identity
from tasks.ledger.nodes import Phase, Wanted, Wish
from tests.unit.ledgers import Ledger


def test_the_last_wish_counts(ledger: Ledger) -> None:
    """A node that nobody said anything of serves; a later wish replaces an earlier one, whether a worker is there."""
    assert nodes.wish(ledger.db, "gpu1") == Wish(Wanted.SERVING, 0.0)
    first = nodes.want(ledger.db, "gpu1", Wanted.DRAINED)
    ledger.wait(1)
    second = nodes.want(ledger.db, "gpu1", Wanted.STOPPED)
    assert second.at > first.at
    assert nodes.wishes(ledger.db) == {"gpu1": second}
    ledger.worker("gpu2/ollama")
    assert nodes.names(ledger.db) == ["gpu1", "gpu2"]


def test_dispatch_counts_no_worker_that_does_not_serve(ledger: Ledger) -> None:
    """From the moment a worker says that it drains, only other workers' room is filled."""
    draining, other = ledger.worker("gpu1/x", capacity=50), ledger.worker("gpu2/x", capacity=2)
    nodes.set_phase(ledger.db, draining, Phase.DRAINING, "its node is being drained", 0)
    ledger.submit(100)
    assert ledger.fill() == 4
    row = ledger.workers()[draining.name]
    assert (row.phase, row.detail, row.consuming) == ("draining", "its node is being drained", False)
    assert ledger.workers()[other.name].consuming


def test_only_the_process_that_has_the_name_says_its_phase(ledger: Ledger) -> None:
    """A worker that was replaced changes nothing of its successor's row."""
    before = ledger.worker("gpu1/x")
    ledger.worker("gpu1/x")
    nodes.set_phase(ledger.db, before, Phase.STOPPED, "", 0)
    assert ledger.workers()["gpu1/x"].phase == "serving"


def test_a_complaint_is_of_one_wish(ledger: Ledger) -> None:
    """What failed for an earlier wish is not held against a later one."""
    me = Identity("gpu1", "ollama", "run", 1)
    first = nodes.want(ledger.db, "gpu1", Wanted.STOPPED)
    nodes.complain(ledger.db, me, first, "`stop` ended with status 3")
    ledger.wait(1)
    second = nodes.want(ledger.db, "gpu1", Wanted.STOPPED)
    nodes.complain(ledger.db, me, first, "and again, late")
    assert nodes.complaints(ledger.db, [me.name], first) == {me.name: "and again, late"}
    assert nodes.complaints(ledger.db, [me.name], second) == {}
    assert nodes.complaints(ledger.db, ["gpu2/ollama"], first) == {}


def test_heartbeats_are_counted_by_the_ledgers_clock(ledger: Ledger) -> None:
    """Whatever time it is where somebody asks."""
    ledger.worker("gpu1/x")
    ledger.wait(7)
    ((row, ago),) = nodes.seen(ledger.db)
    assert (row.node, ago) == ("gpu1", 7.0)
