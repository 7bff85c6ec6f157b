"""How many calls may run now, and whether the worker takes slices at all: pure, told the time.

A busy server (429, 503) halves the limit and pauses new calls for as long as it asked, or a time that doubles;
each success lets the limit grow again, one call a round.  A provider that is away, loading or refuses the key takes
nothing until a probe says that it is back.
"""

from __future__ import annotations

from workers.backends import Health

#: seconds of the first and the longest pause after a busy reply that named none
BUSY_FIRST_S, BUSY_MOST_S = 0.5, 30.0
#: seconds the whole provider pauses at most, whatever one reply asked for; the job itself waits as long as asked
PAUSE_MOST_S = 60.0
#: seconds between probes of a provider that is away: the first and the most
PROBE_FIRST_S, PROBE_MOST_S = 0.5, 10.0
#: a pause longer than this gives the waiting jobs back, so that other workers can run them
PATIENCE_S = 5.0


class Gate:
    """The limit of one provider."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.health = Health.HEALTHY
        self.detail = ""
        self._limit = float(capacity)
        self._paused_until = 0.0
        self._troubles = 0  #: busy replies or failed probes in a row
        self._halved_at = float("-inf")

    @property
    def limit(self) -> int:
        """Calls at once, whatever the health."""
        return max(1, int(self._limit))

    @property
    def away(self) -> bool:
        """Whether the provider must be probed before anything is sent."""
        return self.health in (Health.OFFLINE, Health.MISCONFIGURED)

    def free(self, running: int, now: float) -> int:
        """How many more calls may start."""
        if self.away or now < self._paused_until:
            return 0
        return max(0, self.limit - running)

    def pause(self, now: float) -> float:
        """Seconds until a busy server is asked again."""
        return max(0.0, self._paused_until - now)

    def takes(self, now: float) -> bool:
        """Whether the worker should consume; False gives other workers the chance."""
        return not self.away and self.pause(now) <= PATIENCE_S

    def succeeded(self, now: float) -> None:
        """A call was answered; one that was sent before a pause began does not end it."""
        self._limit = min(float(self.capacity), self._limit + 1 / max(1.0, self._limit))
        if not self.away and now >= self._paused_until:
            self.health, self.detail, self._troubles = Health.HEALTHY, "", 0

    def busy(self, now: float, retry_after: float | None, detail: str, *, loading: bool = False) -> float:
        """The server takes nothing more; returns the pause in seconds. Replies to calls of one moment count once."""
        if now - self._halved_at > 1.0:
            self._halved_at = now
            self._limit = max(1.0, self._limit / 2)
            self._troubles += 1
        pause = retry_after if retry_after is not None else _doubled(BUSY_FIRST_S, BUSY_MOST_S, self._troubles)
        self._paused_until = max(self._paused_until, now + min(pause, PAUSE_MOST_S))
        if not self.away:  # a reply that comes late does not bring a lost provider back
            self.health, self.detail = (Health.WARMING if loading else Health.BUSY), detail
        return pause

    def lost(self, health: Health, detail: str) -> None:
        """Nobody answers, or the provider refuses us: nothing is sent until a probe is fine."""
        if not self.away:
            self._troubles = 0
        self.health, self.detail = health, detail

    def probe_wait(self) -> float:
        """Seconds until the next probe; grows with every one that failed."""
        self._troubles += 1
        return _doubled(PROBE_FIRST_S, PROBE_MOST_S, self._troubles)

    def found(self) -> None:
        """A probe was fine."""
        self.health, self.detail, self._troubles = Health.HEALTHY, "", 0
        self._paused_until = 0.0


def _doubled(first: float, most: float, times: int) -> float:
    return float(min(most, first * 2 ** min(20, max(0, times - 1))))
