"""The jobs in a worker's hand and how long each lease holds, by this machine's monotonic clock."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.ledger.claims import Claimed


def clock() -> float:
    """Seconds that only grow, and on Linux do so while the machine is suspended: leases run out then, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(slots=True, eq=False)
class Held:
    """One job in hand. Times are `clock`'s seconds; `call` is set while its request is in flight."""

    job: Claimed
    taken_at: float
    lease_until: float
    call: asyncio.Task[Any] | None = None
    ended: bool = False  #: its outcome is with the recorder
    dropped: bool = False  #: cancelled, fenced or drained: its call is being closed

    def unix_time(self) -> float:
        """Now, by the ledger's clock as it was at the claim: this machine's own may be wrong."""
        return self.job.claimed_at + clock() - self.taken_at


@dataclass
class Hand:
    """Every job this process holds a lease for, from its claim until its outcome is recorded."""

    _held: dict[tuple[int, int], Held] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, jobs: Iterable[Claimed], claimed_at: float, lease_s: float) -> list[Held]:
        """Jobs just claimed. `claimed_at`, the clock's, is from before the claim: a lease is never overrated."""
        new = [Held(job, claimed_at, claimed_at + lease_s) for job in jobs]
        with self._lock:
            self._held.update({(h.job.id, h.job.fence): h for h in new})
        return new

    def forget(self, keys: Iterable[tuple[int, int]]) -> None:
        """Jobs whose outcome is recorded."""
        with self._lock:
            for key in keys:
                self._held.pop(key, None)

    def all(self) -> list[Held]:
        """Everything in hand now."""
        with self._lock:
            return list(self._held.values())

    def unrecorded(self) -> bool:
        """Whether an outcome waits to be recorded: until it is, the ledger says that its job runs."""
        return any(held.ended for held in self.all())

    def __len__(self) -> int:
        return len(self._held)

    def pairs(self) -> dict[int, int]:
        """id -> fence of what is to be renewed."""
        return {held.job.id: held.job.fence for held in self.all()}

    def renewed(self, asked: Mapping[int, int], ids: set[int], asked_at: float, lease_s: float) -> list[Held]:
        """The leases of `ids`, out of the pairs asked for, were renewed; returns those that are no longer ours."""
        lost = []
        for held in self.all():
            if asked.get(held.job.id) != held.job.fence:
                continue  # claimed while the others were being renewed
            if held.job.id in ids:
                held.lease_until = max(held.lease_until, asked_at + lease_s)
            elif not held.ended:
                lost.append(held)
        return lost

    def overdue(self, margin_s: float) -> list[Held]:
        """Jobs whose lease is nearly over because nothing renewed it."""
        limit = clock() + margin_s
        return [h for h in self.all() if h.lease_until <= limit and not h.dropped and not h.ended]

    def of_batches(self, ids: set[str]) -> list[Held]:
        """The jobs of these batches."""
        return [h for h in self.all() if h.job.batch_id in ids]
