"""What clients do to a pool: the same submit twice, a cancel at the worst moment."""

from __future__ import annotations

import threading
import time
from collections import Counter

from tasks.states import TERMINAL
from tests.chaos.client import Submission
from tests.chaos.strike import Strike


def same_key(s: Strike) -> None:
    """25: one idempotency key for the same body, at once and later, and for another body."""
    name = f"key-{s.client.strike}-{s.random.randrange(10**9)}"
    texts = [f"{name} line {i}." for i in range(8)]
    made: list[Submission] = []

    def go() -> None:
        made.append(s.client.submit_texts(name, texts, "small", key=name))

    threads = [threading.Thread(target=go) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    s.struck_batch(next(m for m in made if m.id is not None))
    again = s.client.submit_texts(name, texts, "small", key=name)
    other = s.client.submit_texts(name, [*texts[:-1], f"{name} is another."], "small", key=name)
    s.expect(len({m.id for m in [*made, again]}) == 1, f"one key, several batches: {[m.id or m.error for m in made]}")
    s.expect("Conflict" in other.error, f"another body under the same key: {other.error or other.id}")
    s.recover()


def cancelled(s: Strike) -> None:
    """26: cancel against claim against completion: each job has one end."""
    batch = s.client.submit(s.random.randint(16, 40), priority=1)
    time.sleep(s.random.uniform(0, 1.2 * s.site.ttft))
    s.struck_batch(batch)
    s.provoked = True
    threads = [threading.Thread(target=s.client.cancel, args=(batch,)) for _ in range(s.random.randint(1, 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    s.recover()
    states = Counter(line["state"] for line in s.client.results(batch))
    s.expect(set(states) <= TERMINAL, f"a cancelled batch has {dict(states)}")
    time.sleep(0.3)  # what was in flight ends or is closed: a late result must change nothing
    s.expect(Counter(line["state"] for line in s.client.results(batch)) == states, "it changed afterwards")
