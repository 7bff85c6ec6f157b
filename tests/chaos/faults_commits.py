"""What happens around one commit: the process is killed before or after it, or its answer is lost.

With PostgreSQL the proxy acts when it sees the COMMIT; with SQLite the process does so itself (inside/).
"""

from __future__ import annotations

import signal

from tests.chaos.faults_messages import send_again, slices
from tests.chaos.inside import sitecustomize as inside
from tests.chaos.pool import Node
from tests.chaos.strike import Missed, Strike

_ON = {"results": inside.RECORD, "a claim": inside.CLAIM}


def killed_before(s: Strike) -> None:
    """2: kill -9 after the reply, before the commit."""
    victim = s.victim()
    s.busy([victim])
    _kill_at(s, victim, inside.RECORD, after=False)
    s.struck(victim)


def killed_after(s: Strike) -> None:
    """3: kill -9 after the commit, before the ack; every message that was under way comes twice."""
    victim, what = s.victim(), s.random.choice(sorted(_ON))
    s.note = f"{victim.name}, at {what}"
    s.busy([victim])
    sent = slices(s)
    _kill_at(s, victim, _ON[what], after=True)
    s.struck(victim)
    send_again(s, {*sent, *slices(s)})


def _kill_at(s: Strike, victim: Node, on: int, *, after: bool) -> None:
    pid = victim.worker.pid
    victim.worker.wanted = s.random.random() < 0.5
    s.later(victim.worker.start)
    if victim.database is not None:
        victim.committed.arm(lambda: victim.worker.signal(signal.SIGKILL), on=on, forwarded=after)
        s.later(victim.committed.disarm)
    else:
        victim.worker.strings.trap(inside.KILL_AFTER if after else inside.KILL_BEFORE, on)
        s.later(lambda: victim.worker.strings.trap(inside.NONE, 0))
    try:
        s.eventually(lambda: victim.worker.is_over(pid), "the worker commits, and dies of it", 10)
    except AssertionError as error:
        raise Missed(str(error)) from None


def answer_lost(s: Strike) -> None:
    """14: the connection is cut during COMMIT, and it was done or not; of SQLite the COMMIT fails."""
    victim, what = s.victim(), s.random.choice(sorted(_ON))
    done = victim.database is not None and s.random.random() < 0.7  # SQLite never loses the answer of what it did
    s.note = f"{victim.name}, {what}, {'done' if done else 'not done'}"
    s.busy([victim])
    if victim.database is not None:
        victim.committed.arm(lambda: None, on=_ON[what], forwarded=done)
        s.later(victim.committed.disarm)
        sprung = victim.committed.sprung.is_set
    else:
        strings = victim.worker.strings
        strings.trap(inside.FAIL, _ON[what])
        s.later(lambda: strings.trap(inside.NONE, 0))
        sprung = lambda: strings.sprung  # noqa: E731
    before = s.held_by(victim.full_name)
    try:
        s.eventually(sprung, "the worker commits", 10)
    except AssertionError as error:
        raise Missed(str(error)) from None
    s.hit = before | s.held_by(victim.full_name)
    s.struck(victim, running=s.site.nodes)
