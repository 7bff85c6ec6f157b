"""What befalls the ways between a node, Redis and PostgreSQL."""

from __future__ import annotations

import functools
import time

from tests.chaos.proxy import Proxy
from tests.chaos.strike import Strike
from tests.chaos.watching import SOCKETS_S


def cut_off(s: Strike) -> None:
    """7: one node loses Redis, the database, or both, for longer than a lease; its calls end, others take over."""
    victim = s.victim()
    ways: dict[str, list[Proxy]] = {"Redis": [victim.redis]}
    if victim.database is not None:
        ways |= {"the database": [victim.database], "both": victim.proxies}
    what, how = s.random.choice(sorted(ways)), s.random.choice(["hole", "cut", "half-open", "slow"])
    dead = s.random.random() < 0.3
    s.note = f"{victim.name} from {what}, {how}{', its connections never come back' if dead else ''}"
    s.busy(s.site.nodes)
    s.breaks_sockets()
    for proxy in ways[what]:
        _break(proxy, how)
        s.later(functools.partial(proxy.heal, dead=dead))
    s.struck(victim)
    s.recover()
    left = s.site.times.lease * s.random.uniform(1.1, 1.5) - (time.monotonic() - (s.began or 0))
    time.sleep(max(0.0, left))
    if how in ("hole", "cut") and what != "Redis":
        s.expect(victim.running == 0, f"{victim.name} still runs {victim.running} calls")
        doubled = s.overlapping(victim)
        s.expect(not doubled, f"{len(doubled)} jobs were called elsewhere before {victim.name} closed its own call")
    for proxy in ways[what]:
        proxy.heal(dead=dead)
    s.comes_back([victim], 60 / s.site.divisor + SOCKETS_S)


def _break(proxy: Proxy, how: str) -> None:
    match how:
        case "hole":
            proxy.hole()
        case "cut":
            proxy.cut()
        case "half-open":
            proxy.half_open()
        case "slow":
            proxy.delay(0.3)


def black_hole(s: Strike) -> None:
    """8: Redis swallows everything; afterwards connections go on, or are dead without a word."""
    dead = s.random.random() < 0.4
    seconds = s.random.uniform(0.5, 4)
    s.note = f"{seconds:.1f} s, then {'dead connections' if dead else 'they go on'}"
    proxies = [*(node.redis for node in s.site.every_node), s.site.beat_redis]
    s.busy(s.site.nodes)
    s.breaks_sockets()
    s.struck_all()
    for proxy in proxies:
        proxy.hole()
        s.later(proxy.heal)
    time.sleep(seconds)
    for proxy in proxies:
        proxy.heal(dead=dead)
    s.healed()
