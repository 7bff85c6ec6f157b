"""What befalls model servers: they hang, answer nonsense, are busy, go away."""

from __future__ import annotations

import time

from tests.chaos.strike import Strike

#: ordinary calls in whose time one that hangs may end
DEADLINE_CALLS = 2


def hangs(s: Strike) -> None:
    """17: a call that hangs, a stream that falls silent or never ends: closed at its deadline, the slot is free."""
    how = s.random.choice(["hang", "stall", "delay=600"])
    s.note = how
    s.provoked = True
    batch = s.client.submit(
        4, "once", f"[[sim:{how}]]", marked=2, priority=9, extra={"timeout_s": DEADLINE_CALLS * s.site.ttft}
    )
    s.eventually(lambda: s.asks(lambda: s.client.running(batch)), "they run", 15)
    s.struck_batch(batch)
    results = s.ends(batch)
    s.recovery = time.monotonic() - (s.began or 0)
    states = [line["state"] for line in sorted(results, key=lambda line: str(line["id"]))]
    s.expect(states == ["failed", "failed", "done", "done"], f"jobs ended {states}")
    codes = {line["error"]["code"] for line in results if line["state"] == "failed"}
    s.expect(all("timeout" in code for code in codes), f"they failed with {sorted(codes)}")


def nonsense(s: Strike) -> None:
    """18: bad JSON, a NUL, 100 MB: an end for that job alone."""
    how = s.random.choice(["badjson", "badjson", "nul", "nul", "huge=100"])
    s.note = how
    s.provoked = True
    category = "data" if how == "badjson" else "once"
    batch = s.client.submit(6, category, f"[[sim:{how}]]", marked=1, priority=9)
    s.struck_batch(batch)
    by_line = {line["id"]: line for line in s.ends(batch)}
    s.recovery = time.monotonic() - (s.began or 0)
    odd = by_line.pop("j0")
    s.expect(odd["state"] == ("done" if how == "nul" else "failed"), f"{how} ended {odd['state']}")
    states = {line["state"] for line in by_line.values()}
    s.expect(states == {"done"}, f"the other jobs ended {sorted(states)}")


def busy(s: Strike) -> None:
    """19: 429, 503, a stream that breaks off, a restart: backed off from, and a busy server burns no attempt."""
    how = s.random.choice(["429=0.2*1", "503=0.2*1", "half*1", "restart"])
    s.note = how
    s.provoked = True
    if how == "restart":
        _restart(s)
        return
    batch = s.client.submit(6, mark=f"[[sim:{how}]]", marked=3, priority=9)
    s.struck_batch(batch)
    s.excuse(*s.site.nodes)
    results = s.ends(batch)
    s.recovery = time.monotonic() - (s.began or 0)
    states = {line["state"] for line in results}
    s.expect(states == {"done"}, f"jobs ended {sorted(states)}")
    attempts = {line["id"]: line["attempts"] for line in results}
    wanted = {f"j{i}": 1 + (s.met(batch, i + 1, "half") if how == "half*1" else 0) for i in range(6)}
    s.expect(attempts == wanted, f"attempts are {attempts}, and {wanted} would be right")
    s.expect(how != "half*1" or min(attempts[f"j{i}"] for i in range(3)) > 1, f"attempts are {attempts}")


def _restart(s: Strike) -> None:
    victim = s.victim()
    s.note = f"restart of {victim.name}'s"
    s.busy([victim])
    hit = s.held_by(victim.full_name)
    victim.stop_server()
    s.hit = hit
    s.struck(victim)
    time.sleep(s.random.uniform(0, 0.5))
    victim.start_server()
    s.recover()
    s.comes_back([victim], s.within)
