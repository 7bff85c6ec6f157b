"""The border of a provider: what may be sent to it, and which addresses it may be at.

Everything that carries a prompt out of a worker passes `admit`, which looks at each request as it is about to be sent.
The sockets of Ollama's and OpenAI's protocols are made here as well, only to addresses within the provider's declared
reach, whatever a name resolves to; a provider of kind anthropic or a command may be anywhere, and is a cloud unless a
command is declared nearer.  No redirect and no proxy is followed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from tasks.errors import OutOfReach
from tasks.privacy import Clearance, Markers, Reach, findings, permits, reach_of_address, texts, within

#: characters of a request beyond which its detectors run on another thread
LARGE = 64 * 1024


@dataclass(frozen=True)
class Border:
    """What one provider may be sent. reach: as declared; markers: the user's own detectors."""

    reach: Reach = Reach.LOCAL
    markers: Markers = field(default_factory=Markers)

    def admit(self, name: str, clearance: Clearance, request: Any) -> None:
        """Let a request (any JSON value, or the text itself) go to provider `name`; raises OutOfReach."""
        if self.reach is Reach.LOCAL:
            return
        tier = clearance.tier
        if permits(tier, self.reach):
            tier = clearance.tightened(findings("\n".join(texts(request)), clearance.touches, self.markers))
        if not permits(tier, self.reach):
            raise OutOfReach(tier, f"the job is {tier} and provider {name} is {self.reach}; nothing was sent")

    async def admitted(self, name: str, clearance: Clearance, request: Any) -> None:
        """The same, on another thread where the request is long: nobody else waits for its detectors."""
        if self.reach is not Reach.LOCAL and sum(map(len, texts(request))) > LARGE:
            await asyncio.to_thread(self.admit, name, clearance, request)
        else:
            self.admit(name, clearance, request)


#: this machine only, which is what a backend is given unless told
LOOPBACK = Border()


class AddressOutOfReach(OSError):
    """A provider's address is further away than its declared reach."""


class ReachResolver(AbstractResolver):
    """Resolves names; one that leads out of reach, even by one of its addresses, leads nowhere."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a name; AddressOutOfReach."""
        found = await self._inner.resolve(host, port, family)
        for one in found:
            _check(one["host"], self._reach)
        return found

    async def close(self) -> None:
        """Nothing is held."""
        await self._inner.close()


def socket_maker(reach: Reach) -> Callable[[Any], socket.socket]:
    """aiohttp's socket_factory: makes a socket only for an address within reach, given literally or resolved."""

    def make(address: Any) -> socket.socket:
        family, type_, proto, _, where = address
        _check(where[0], reach)
        return socket.socket(family=family, type=type_, proto=proto)

    return make


def _check(address: str, reach: Reach) -> None:
    if not within(reach_of_address(address), reach):
        raise AddressOutOfReach(f"an address beyond reach {reach}")
