"""`doctor --deep`: whether every row of the ledger agrees with the others, and what mends those that do not."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator

from api.use_cases.doctor import Finding
from api.use_cases.pool import Pool
from tasks.ledger import invariants, mending
from tasks.ledger.database import Database
from tasks.ledger.invariants import JOBS, MENDED, Rule

#: things that one finding names
NAMED = 5

#: is told how far the look is: what is looked at, how many of how many
OnProgress = Callable[[str, int, int], None]


def examine_deep(pool: Pool, on_progress: OnProgress, *, fix: bool = False) -> Iterator[Finding]:
    """Look at everything, in bounded pages; with `fix`, mend what can be mended, which is then told as fine."""
    db = pool.db
    lying = invariants.left_lying(db)
    yield _batches(db, on_progress, fix)
    gone = invariants.missing_batches(db)
    yield _finding("batches that others name", gone, "fine", "restore the ledger from a copy, or cancel these batches")
    attempts = {c.name: c.attempts for c in pool.registry.categories.values()}
    yield from _jobs(db, invariants.rules(attempts), on_progress, fix)
    yield _sweep(db, lying, pool.settings.times.sweep)


def _batches(db: Database, on_progress: OnProgress, fix: bool) -> Finding:
    wrong, looked = [], 0
    for page in invariants.batch_pages(db):
        found = invariants.miscounted(db, page)
        if fix:
            for batch_id in found:
                mending.recount(db, batch_id)
            found = invariants.miscounted(db, found) if found else {}
        wrong += [f"{batch_id}: {words}" for batch_id, words in found.items()]
        looked += len(page)
        on_progress("batches", looked, looked)
    return _finding("counters of batches", wrong, f"{looked:,} batches", MENDED)


def _jobs(db: Database, rules: Collection[Rule], on_progress: OnProgress, fix: bool) -> Iterator[Finding]:
    last = invariants.highest_job(db)
    wrong: dict[str, list[int]] = {rule.name: [] for rule in rules}
    for after in range(0, last, JOBS):
        for rule in rules:
            found = invariants.broken(db, rule, after)
            if found and fix and rule.fix == MENDED:
                mending.bring_back(db, found)
                found = invariants.broken(db, rule, after)
            wrong[rule.name] += found
        on_progress("jobs", min(after + JOBS, last), last)
    for rule in rules:
        ids = wrong[rule.name]
        named = invariants.called(db, ids[:NAMED]) + [""] * (len(ids) - NAMED)
        yield _finding(rule.name, named, "fine", rule.fix, rule.words)


def _sweep(db: Database, lying: Collection[str], every_s: float) -> Finding:
    """What the sweep mends is wrong only when it is there for two sweeps."""
    if lying:
        time.sleep(2 * every_s)
        lying = sorted(set(lying) & invariants.left_lying(db))
    fix = f"the sweep mends this within {every_s:g} s: offload up, or: offload beat"
    return _finding("what the sweep mends", list(lying), "fine", fix)


def _finding(name: str, wrong: list[str], fine: str, fix: str, words: str = "") -> Finding:
    """A finding of what is wrong, of which the first few are named."""
    if not wrong:
        return Finding(f"ledger, {name}", True, fine)
    more = f" and {len(wrong) - NAMED:,} more" if len(wrong) > NAMED else ""
    named = ", ".join(wrong[:NAMED]) + more
    return Finding(f"ledger, {name}", False, f"{words}: {named}" if words else named, fix)
