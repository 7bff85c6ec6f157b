"""What befalls Redis itself."""

from __future__ import annotations

import shutil
import time

from api.use_cases.doctor import examine
from tests.chaos.strike import Strike
from tests.support.ports import free_port


def flushed(s: Strike) -> None:
    """10: FLUSHALL under load."""
    s.busy(s.site.nodes)
    s.struck_all()
    s.site.redis.client.flushall()


def restarted(s: Strike) -> None:
    """9: killed and started again, with its file or without."""
    keeps, seconds = s.random.random() < 0.5, s.random.uniform(0, 1.5)
    s.note = f"{'with' if keeps else 'without'} its file, away {seconds:.1f} s"
    s.busy(s.site.nodes)
    s.struck_all()
    s.site.redis.kill()
    if not keeps:
        shutil.rmtree(s.site.redis_data / "appendonlydir", ignore_errors=True)
    time.sleep(seconds)
    s.site.redis.start()
    s.healed()


def down_at_submit(s: Strike) -> None:
    """11: a submit is accepted while Redis is down; its jobs run when it is back."""
    s.busy(s.site.nodes)
    s.struck_all()
    s.site.redis.kill()
    s.later(s.site.redis_up)
    began = time.monotonic()
    batch = s.client.submit(20, priority=5)
    took = time.monotonic() - began
    s.expect(batch.id is not None, f"the submit was not accepted: {batch.error}")
    s.expect(took < 5, f"the submit took {took:.1f} s", "time")
    s.site.redis_up()
    s.healed()
    s.recover()
    if batch.id is not None:
        s.ends(batch)


def takes_nothing(s: Strike) -> None:
    """12: Redis is out of memory, or read-only: submits are accepted, and doctor says what is wrong."""
    broker, full = s.site.redis.client, s.random.random() < 0.5
    s.note = "out of memory" if full else "read-only"
    s.busy(s.site.nodes)
    s.struck_all()
    if full:
        broker.config_set("maxmemory", "1")
        s.later(lambda: broker.config_set("maxmemory", "0"))
    else:
        broker.replicaof("127.0.0.1", str(free_port()))  # a master that is not there: what it holds it keeps
        s.later(lambda: broker.replicaof("NO", "ONE"))
    batch = s.client.submit(20, priority=5)
    s.expect(batch.id is not None, f"the submit was not accepted: {batch.error}")
    said = [f for f in examine(s.site.pool) if f.check == "redis"]
    s.expect(any(not f.ok for f in said), f"doctor finds Redis {said[0].detail if said else 'nowhere'}", "alert")
    time.sleep(s.random.uniform(0.2, 1))
    if full:
        broker.config_set("maxmemory", "0")
    else:
        broker.replicaof("NO", "ONE")
    s.healed()
    s.recover()
    if batch.id is not None:
        s.ends(batch)
