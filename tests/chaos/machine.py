"""A network namespace with one cable to this machine, which can be pulled; Linux, root and `ip` are needed."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess

#: the two ends of the cable; the network is nobody's but this test's
HERE, THERE = "10.213.97.1", "10.213.97.2"


class Machine:
    """A namespace; what runs in it has a loopback of its own and reaches HERE over the cable."""

    def __init__(self) -> None:
        word = secrets.token_hex(3)
        self._name, self._cable, far = f"offload-{word}", f"offl{word}", f"offr{word}"
        _ip("netns", "add", self._name)
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", far, "netns", self._name)
        _ip("addr", "add", f"{HERE}/30", "dev", self._cable)
        self.plug()
        self._inside("addr", "add", f"{THERE}/30", "dev", far)
        for device in ("lo", far):
            self._inside("link", "set", device, "up")

    @property
    def prefix(self) -> list[str]:
        """What a command begins with that runs there."""
        return ["ip", "netns", "exec", self._name]

    def pull(self) -> None:
        """Pull the cable: the kernel drops every packet, and nobody is told."""
        _ip("link", "set", self._cable, "down")

    def plug(self) -> None:
        """Put it in again."""
        _ip("link", "set", self._cable, "up")

    def close(self) -> None:
        """Take it away; its end of the cable goes with it."""
        _ip("netns", "del", self._name)

    def _inside(self, *arguments: str) -> None:
        _ip("-n", self._name, *arguments)


def why_not() -> str:
    """Why there can be no namespaces here, in words; empty where there can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need root and iproute2's `ip`"
    try:
        Machine().close()
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.decode().strip()}"
    return ""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
