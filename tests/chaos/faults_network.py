"""What befalls the ways between a node, Redis and PostgreSQL."""

from __future__ import annotations

import time

from tests.chaos.nemesis import SOCKETS_S, Strike
from tests.chaos.proxy import Proxy


def cut_off(s: Strike) -> None:
    """7: one node loses Redis, the database, or both, for longer than a lease; its calls end, others take over."""
    victim = s.victim()
    ways: dict[str, list[Proxy]] = {"Redis": [victim.redis]}
    if victim.database is not None:
        ways |= {"the database": [victim.database], "both": victim.proxies}
    what, how = s.random.choice(sorted(ways)), s.random.choice(["hole", "cut"])
    dead = s.random.random() < 0.3
    s.note = f"{victim.name} from {what}, {how}{', its connections never come back' if dead else ''}"
    s.busy(s.site.nodes)
    for proxy in ways[what]:
        proxy.hole() if how == "hole" else proxy.cut()
        s.later(lambda proxy=proxy: proxy.heal(dead=dead))  # type: ignore[misc]
    s.crashed(victim)
    s.recover()
    left = s.site.times.lease * s.random.uniform(1.1, 1.5) - (time.monotonic() - (s.began or 0))
    time.sleep(max(0.0, left))
    s.expect(victim.running == 0 or what == "Redis", f"{victim.name} still runs {victim.running} calls")
    for proxy in ways[what]:
        proxy.heal(dead=dead)
    s.comes_back([victim], 60 / s.site.divisor + SOCKETS_S)


def black_hole(s: Strike) -> None:
    """8: Redis swallows everything; afterwards connections go on, or are dead without a word."""
    dead = s.random.random() < 0.4
    seconds = s.random.uniform(0.5, 4)
    s.note = f"{seconds:.1f} s, then {'dead connections' if dead else 'they go on'}"
    proxies = [*(node.redis for node in s.site.every_node), s.site.beat_redis]
    s.busy(s.site.nodes)
    s.struck_all()
    for proxy in proxies:
        proxy.hole()
        s.later(proxy.heal)
    time.sleep(seconds)
    for proxy in proxies:
        proxy.heal(dead=dead)
    s.healed()
