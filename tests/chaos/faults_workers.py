"""What befalls processes: workers, beat and the supervisor killed, stopped, asked to end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from functools import partial

from tests.chaos.pool import Node
from tests.chaos.strike import Strike
from tests.support.processes import of_folder


def kill_mid_call(s: Strike) -> None:
    """1: kill -9 of a worker, of beat or of the supervisor, while calls are in flight."""
    draw = s.random.random()
    if draw < 0.15:
        _kill_beat(s)
    elif draw < 0.2:
        _kill_supervisor(s)
    else:
        _kill_worker(s)


def _kill_worker(s: Strike) -> None:
    victim, at_once = s.victim(), s.random.random() < 0.5
    s.note = f"{victim.name}, {'started again at once' if at_once else 'away until others took over'}"
    s.busy([victim])
    s.dead(victim.worker, wanted=at_once)
    s.struck(victim)
    s.wasted_at_most = len(s.hit)  # in flight, or answered and not yet committed


def _kill_beat(s: Strike) -> None:
    s.note = "beat"
    s.busy(s.site.nodes)
    s.dead(s.site.beat)
    s.struck_all()


def _kill_supervisor(s: Strike) -> None:
    """A node of its own comes up under `offload up`; its supervisor dies, and everything it held dies with it."""
    s.note = "supervisor"
    up = s.site.supervised()
    s.later(lambda: _end(up))
    s.eventually(lambda: _running_of(s, "up/sim"), "the supervised worker runs jobs", 60)
    up.kill()
    up.wait()
    s.eventually(lambda: not of_folder(s.site.folder / "up"), "nothing of it lives", 10)
    s.hit = s.held_by("up/sim")
    s.struck_all()


def _running_of(s: Strike, worker: str) -> bool:
    return bool(s.asks(lambda: s.held_by(worker)))


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def out_of_memory(s: Strike) -> None:
    """5: the kernel kills a worker with hundreds of calls in flight; the innocent are not failed."""
    big = s.site.node("big")
    batch = s.client.submit(s.random.randint(700, 800), "big")
    s.busy([big], share=4)
    s.eventually(lambda: big.running >= 100, "a hundred calls are in flight", 20)
    s.dead(big.worker)
    s.struck(big, running=[])
    s.recover()
    states = {line["state"] for line in s.ends(batch)}
    s.expect(states == {"done"}, f"innocent jobs ended {sorted(states)}")


def stopped(s: Strike) -> None:
    """6: SIGSTOP for longer than a lease, then SIGCONT: stale writes change nothing, calls were closed."""
    draw = s.random.random()
    if draw < 0.1:
        _stop_beat(s)
        return
    if draw < 0.15:
        _stop_supervisor(s)
        return
    victim, early = s.victim(), s.random.random() < 0.7
    s.note = f"{victim.name}, goes on {'while others run its jobs' if early else 'afterwards'}"
    s.busy(s.site.nodes)
    answered = victim.asked
    s.eventually(lambda: victim.asked > answered, "it is answered", 10)
    time.sleep(s.random.uniform(0, 0.05))  # an answer is in its hand, and not yet committed
    victim.worker.signal(signal.SIGSTOP)
    s.later(lambda: victim.worker.signal(signal.SIGCONT))
    s.struck(victim)
    if s.site.is_locked():
        s.note += ", stopped while it wrote: SQLite waits for it"
        s.excuse(*s.site.nodes)
        time.sleep(s.site.times.lease * 1.2)
        victim.worker.signal(signal.SIGCONT)
        s.healed()
        return
    if early:
        stale = s.answered(victim)
        s.until(lambda: s.runs_again(stale), "another worker runs what it holds an answer for", s.within)
    else:
        s.recover()
        time.sleep(s.random.uniform(0, 0.5) * s.site.times.lease)
    overtaken = s.runs_again(s.was_answered(victim))
    victim.worker.signal(signal.SIGCONT)
    if overtaken:
        s.until(s.stale_calls, "what came too late is counted", s.within)


def _stop_supervisor(s: Strike) -> None:
    """What it started goes on without it, and it goes on afterwards."""
    s.note = "supervisor"
    up = s.site.supervised()
    s.later(lambda: _end(up))
    s.eventually(lambda: _running_of(s, "up/sim"), "the supervised worker runs jobs", 60)
    up.send_signal(signal.SIGSTOP)
    s.later(lambda: up.send_signal(signal.SIGCONT))
    s.hit = s.held_by("up/sim")
    s.struck_all()
    time.sleep(s.site.times.lease * 1.2)
    up.send_signal(signal.SIGCONT)
    s.recover()


def _stop_beat(s: Strike) -> None:
    s.note = "beat"
    s.busy(s.site.nodes)
    s.site.beat.signal(signal.SIGSTOP)
    s.later(lambda: s.site.beat.signal(signal.SIGCONT))
    s.struck_all()
    time.sleep(s.site.times.lease * 1.2)
    s.site.beat.signal(signal.SIGCONT)
    s.healed()


def drained(s: Strike) -> None:
    """20: SIGTERM to one worker or, one after another, to all: no attempt burned, no call twice."""
    nodes = [s.victim()] if s.random.random() < 0.7 else list(s.site.nodes)
    s.note = " then ".join(node.name for node in nodes)
    s.wasted_at_most = 0
    for node in nodes:
        s.busy([node])
        s.struck(node)
        s.excuse(*nodes)
        status = node.worker.ended(node.worker.signal(signal.SIGTERM), 30)
        s.expect(status == 0, f"{node.name} ended with status {status}")
        s.recover()
        s.site.until_well([node])


def drained_too_long(s: Strike) -> None:
    """21: the drain takes longer than its grace, and the worker is killed."""
    batch = s.client.submit(2, mark=f"[[sim:delay={2 * s.site.times.lease:g}*1]]", priority=5)  # one slice
    found: list[Node] = []

    def runs_somewhere() -> bool:
        found[:] = [node for node in s.site.nodes if s.asks(partial(s.client.called, batch, node.full_name))]
        return bool(found)

    s.eventually(runs_somewhere, "a worker runs a long call", 10 + 2 * s.site.ttft)
    victim = found[0]
    s.note = victim.name
    s.busy([victim])
    s.hit = s.held_by(victim.full_name)
    victim.worker.signal(signal.SIGTERM)
    time.sleep(s.random.uniform(0.3, 0.6))
    s.dead(victim.worker, wanted=s.random.random() < 0.5)
    s.struck(victim)
    s.recover()
    states = {line["state"] for line in s.ends(batch)}
    s.expect(states == {"done"}, f"its jobs ended {sorted(states)}")


def poison(s: Strike) -> None:
    """16: a job that kills its worker: found by halves, then alone, and failed; the others are done."""
    risky: Node = s.site.node("risky")
    pid = risky.worker.pid  # before the submit returns it may be another's
    batch = s.client.submit(s.random.randint(8, 16), "risky", mark="KILLS-ITS-WORKER", marked=1)
    s.eventually(lambda: risky.worker.is_over(pid), "the worker dies", 30)
    s.struck_batch(batch)
    s.excuse(risky)
    results = s.ends(batch, s.within + 60)
    s.recovery = time.monotonic() - (s.began or 0)
    by_line = {line["id"]: line for line in results}
    guilty = by_line.pop("j0")
    s.expect(guilty["state"] == "failed", f"the poison ended {guilty['state']}")
    s.expect(guilty.get("error", {}).get("code") == "poison", f"the poison failed with {guilty.get('error')}")
    states = {line["state"] for line in by_line.values()}
    s.expect(states == {"done"}, f"innocent jobs ended {sorted(states)}")
