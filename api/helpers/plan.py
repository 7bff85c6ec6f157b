"""What the helpers need of the configuration, without loading it: a plan, one plain JSON.

    version     of the package that made it
    privacy     the tier that the configuration gives jobs of which nothing else is said
    markers     the user's own detectors: {words, roots}
    policy      the rules, as `tasks.policy.from_plain` reads them
    categories  name -> how it is asked (Way)

It is made from the whole configuration (making.py) when a file of that has changed, and kept in the run folder.  Where
neither a configuration nor a policy is written, the plan that comes with the package holds: defaults.json, which
`python -m api.helpers.plan` writes anew.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from dataclasses import dataclass
from typing import Any, Literal

from api.helpers import kept
from tasks import policy
from tasks.errors import UsageError
from tasks.privacy import Markers, Reach, Tier
from workers.straight import Server

#: the category whose server `--health` asks
DEFAULT = "chat"
SHIPPED = os.path.join(os.path.dirname(__file__), "defaults.json")
KEPT = "helpers.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Way:
    """How a category is asked. hindrance: why no server can be asked straight, in words; empty where one can."""

    name: str
    kind: Literal["chat", "embed"]
    model: str
    server: Server | None
    hindrance: str
    cloud_only: bool
    system: str
    json: bool
    think: bool | None
    temperature: float | None
    max_tokens: int | None
    options: dict[str, Any]
    connect_s: float
    total_s: float
    privacy: Tier | None


@dataclass(frozen=True)
class Plan:
    """A plan that was read. policy: plain."""

    ways: dict[str, Way]
    tier: Tier | None
    markers: Markers
    policy: dict[str, Any]

    def way(self, category: str) -> Way:
        """How a category is asked; raises UsageError with the nearest name there is."""
        if category in self.ways:
            return self.ways[category]
        from difflib import get_close_matches  # only here: it is seldom needed

        near = get_close_matches(category, self.ways, n=1)
        also = f"did you mean {near[0]}?" if near else f"known: {', '.join(self.ways)}"
        raise UsageError(f"unknown category {shown(category)} ({also})")


def shown(category: str) -> str:
    """A category for messages and logs: a prompt that stands in its place is in neither."""
    return category if _NAME.fullmatch(category) else "(no name)"


def in_force() -> Plan:
    """The plan for the configuration in force; raises ConfigError where that has faults."""
    with open(SHIPPED, "rb") as file:
        raw = file.read()
    files = [
        _file("OFFLOAD_CONFIG", "offload.yaml"),
        _file("", "run/detected.yaml"),
        _file("OFFLOAD_POLICY", "policy.yaml"),
    ]
    if files == [None] * 3:
        return understood(json.loads(raw))
    # what the package brings is part of every plan, and `~` in a marked folder is the user's home
    key = [zlib.crc32(raw), os.path.expanduser("~"), *map(_stamp, files)]
    found = kept.read(KEPT)
    if found.get("key") == key:
        try:
            return _whole(understood(found))
        except Exception:
            pass  # damaged, in whichever way: made anew
    from api.helpers.making import plain_plan  # all of the configuration: 20 times slower

    plain = plain_plan()
    kept.write(KEPT, {"key": key, **plain})
    return understood(plain)


def understood(plain: dict[str, Any]) -> Plan:
    """The plan that a plain JSON is."""
    markers = {kind: {name: Tier(tier) for name, tier in of.items()} for kind, of in plain["markers"].items()}
    return Plan(
        {name: _way(name, way) for name, way in plain["categories"].items()},
        Tier(plain["privacy"]) if plain["privacy"] else None,
        Markers(**markers),
        plain["policy"],
    )


def _whole(plan: Plan) -> Plan:
    """The plan, if all of it can be used; raises whatever is wrong with it."""
    policy.from_plain(plan.policy)
    servers = [way.server for way in plan.ways.values() if way.server is not None]
    if DEFAULT not in plan.ways or not all(isinstance(server.url, str) for server in servers):
        raise ValueError
    return plan


def _way(name: str, plain: dict[str, Any]) -> Way:
    server, tier = plain["server"], plain["privacy"]
    made = Server(**(server | {"reach": Reach(server["reach"])})) if server else None
    return Way(name=name, **(plain | {"server": made, "privacy": Tier(tier) if tier else None}))


def _file(variable: str, *names: str) -> str | None:
    """The file that a variable names, else the first of the home's own that is there."""
    if named := os.environ.get(variable):
        return os.path.abspath(named)
    paths = (os.path.join(kept.home(), name) for name in names)
    return next((path for path in paths if os.path.exists(path)), None)


def _stamp(path: str | None) -> list[Any]:
    """What changes when a file does."""
    try:
        found = os.stat(path) if path is not None else None
    except OSError:
        found = None
    return [path, found.st_mtime_ns, found.st_size] if found else [path]


if __name__ == "__main__":
    from api.helpers.making import write_shipped

    write_shipped()
