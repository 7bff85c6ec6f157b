"""What befalls clocks, and a scheduler that is there twice."""

from __future__ import annotations

import time

from sqlalchemy import text

from tests.chaos.strike import Strike

#: time zones that know daylight saving; beat goes by UTC and should not care
ZONES = ("America/New_York", "Europe/Berlin", "Australia/Lord_Howe")


def wrong_clock(s: Strike) -> None:
    """22: the clock of a worker or of beat is wrong by up to an hour, for a while."""
    role = s.random.choice([s.victim().worker, s.victim().worker, s.site.beat])
    offset = s.random.choice([-1, 1]) * s.random.uniform(1800, 3600)
    s.note = f"{role.name} by {offset:+.0f} s"
    s.busy(s.site.nodes)
    s.struck_all()
    role.strings.clock(offset)
    s.later(lambda: role.strings.clock(0))
    s.provoked = s.site.postgres is None  # SQLite has each process's own clock: only I1 to I5 are promised
    if s.site.postgres is not None:
        s.recover()
    time.sleep(s.site.times.lease * s.random.uniform(0.3, 0.6))
    role.strings.clock(0)
    if s.site.postgres is None:
        due_now(s)
        s.healed()


def due_now(s: Strike) -> None:
    """SQLite has each process's own clock only: what a fast one put off by hours is made due by hand."""
    query = text("UPDATE jobs SET due_at = :now WHERE state = 'queued' AND due_at > :now + 60")
    with s.site.db.write() as c:
        n = c.execute(query, {"now": time.time()}).rowcount
    if n:
        s.note += f", {n} jobs were due in the future"


def two_beats(s: Strike) -> None:
    """23: two beats, one of them in another time zone, and a clock that jumps by three hours."""
    zone, offset = s.random.choice(ZONES), s.random.choice([-1, 1]) * 3 * 3600.0
    second = s.site.second_beat(zone)
    s.later(second.end)
    s.note = f"the second in {zone}, a jump of {offset / 3600:+.0f} h"
    s.busy(s.site.nodes)
    second.start()
    s.struck_all()
    role = s.random.choice([second, s.site.beat])
    time.sleep(s.random.uniform(0.3, 0.8))
    role.strings.clock(offset)
    s.later(lambda: role.strings.clock(0))
    time.sleep(s.random.uniform(0.3, 0.8))
    role.strings.clock(0)
    if s.site.postgres is None:
        due_now(s)
        s.healed()
    s.recover()
    ticked = s.site.sweeps()
    s.eventually(lambda: s.site.sweeps() != ticked, "somebody sweeps", s.within)
