"""Where a prompt may go: tiers, reaches, and what tightens a tier.  Pure, and the standard library only.

    tier        may be sent to providers of reach
    local_only  local: loopback of a pool's node
    lan_ok      local, lan: a private network
    cloud_ok    local, lan, cloud: everything else

A tier is the tightest of what the configuration, the category and the job say (`lan_ok` where none of them says
anything) and of what detectors find.  Detectors only tighten; a person's consent overrules detectors, nothing else.
The tier is decided at submit (routing.py) and checked again on every request as it is about to be sent
(workers/backends/border.py).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tasks.detectors import TIER_OF, detect, names_secret, plain


class Tier(StrEnum):
    """What a job allows, the tightest first."""

    LOCAL_ONLY = "local_only"
    LAN_OK = "lan_ok"
    CLOUD_OK = "cloud_ok"


class Reach(StrEnum):
    """How far a provider is, the nearest first."""

    LOCAL = "local"
    LAN = "lan"
    CLOUD = "cloud"


#: the tier of a job of which nothing is said
UNSAID = Tier.LAN_OK

_TIERS, _REACHES = list(Tier), list(Reach)
#: the tiers that each reach may be sent
TIERS_OF = {reach: frozenset(_TIERS[i:]) for i, reach in enumerate(_REACHES)}

#: RFC 1918, link-local, RFC 6598 (tailnets), unique local addresses
_LAN = tuple(
    map(
        ipaddress.ip_network,
        (
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "169.254.0.0/16",
            "100.64.0.0/10",
            "fc00::/7",
            "fe80::/10",
        ),
    )
)


def permits(tier: Tier, reach: Reach) -> bool:
    """Whether a job of this tier may be sent that far."""
    return tier in TIERS_OF[reach]


def tightest(*tiers: Tier | None) -> Tier | None:
    """The tightest of those that are said; None when none is."""
    return min((t for t in tiers if t is not None), key=_TIERS.index, default=None)


def reach_of_address(address: str) -> Reach:
    """How far an IP address is; one that is no address at all counts as far away."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return Reach.CLOUD
    mapped = getattr(ip, "ipv4_mapped", None)
    ip = mapped or ip
    if ip.is_loopback:
        return Reach.LOCAL
    return Reach.LAN if any(ip in network for network in _LAN if network.version == ip.version) else Reach.CLOUD


def reach_of_host(host: str) -> Reach | None:
    """How far a URL's host is; None for a name, which only its addresses can tell."""
    if host.rstrip(".").lower() == "localhost":
        return Reach.LOCAL
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return reach_of_address(host)


def is_cloud_name(model: str) -> bool:
    """Whether Ollama sends a model of this name to its cloud, whatever it lists."""
    return model.lower().endswith((":cloud", "-cloud"))


def ollama_name(model: str) -> str:
    """The one spelling of all those by which Ollama finds a model: case, its registry and default tag aside."""
    name = model.lower().rpartition("://")[2].removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def within(actual: Reach, declared: Reach) -> bool:
    """Whether an address is no further than its provider's declared reach."""
    return _REACHES.index(actual) <= _REACHES.index(declared)


@dataclass(frozen=True)
class Markers:
    """What the user marks as private: words in a text; folders, by touched paths and where a text names them."""

    words: Mapping[str, Tier] = field(default_factory=dict)
    roots: Mapping[str, Tier] = field(default_factory=dict)

    def found(self, text: str, touches: Sequence[str] = ()) -> dict[str, Tier]:
        """`marker:WORD` or `root:FOLDER` -> tier."""
        text = plain(text)  # as detectors read it: a soft hyphen hides no word
        folded, slashed = text.casefold(), text.replace("\\", "/")
        found = {f"marker:{word}": tier for word, tier in self.words.items() if _has_word(word, folded)}
        for root, tier in self.roots.items():
            if _names_root(root, slashed) or any(_is_under(path, root) for path in touches):
                found[f"root:{root}"] = tier
        return found


#: letters of scripts that set no blank after a word, or put particles to it: Thai to Burmese, Khmer, Chinese, Japanese,
#: Korean
_UNSPACED = (
    "\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc"
    "\U00020000-\U0003ffff"
)
#: a letter that makes another word of one beside it
_LETTER = rf"[^\W{_UNSPACED}]"


def _has_word(word: str, folded: str) -> bool:
    """Whether a marker stands in a folded text as a word of its own: INTERNAL is not in INTERNALS."""
    word = plain(word).casefold()
    if word not in folded:
        return False
    before, after = (re.match(f"[{_UNSPACED}]", edge) is None for edge in (word[0], word[-1]))
    first, rest = re.escape(word[0]), re.escape(word[1:])  # the boundary stands after the first: see detectors.py
    whole = first + (rf"(?<!{_LETTER}.)" if before else "") + rest + (rf"(?!{_LETTER})" if after else "")
    return re.search(whole, folded) is not None


def _names_root(root: str, slashed: str) -> bool:
    """Whether a text names a folder or what is in it, and not one that is called alike: a sentence may end there."""
    folder = _slashed(root)
    return folder in slashed and re.search(rf"{re.escape(folder)}(?!{_LETTER}|-|\.\w)", slashed) is not None


def _is_under(path: str, root: str) -> bool:
    folder = _slashed(root)
    return _slashed(path) == folder or _slashed(path).startswith(f"{folder}/")


def _slashed(path: str) -> str:
    """A path in plain characters with forward slashes, `.` and `..` worked out, none at its end."""
    parts: list[str] = []
    whole = plain(path).replace("\\", "/")
    for part in whole.split("/"):
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return ("/" if whole.startswith("/") else "") + "/".join(parts)


def unescaped(text: str) -> str:
    """A text with JSON's escapes read: the arguments of a tool's call, say, are JSON inside a JSON string."""
    for _ in range(NESTED):
        before, text = text, _ESCAPE.sub(lambda found: _MEANT.get(found[2]) or chr(int(found[1], 16)), text)
        if text == before:
            break
    # halves of characters beyond 16 bits are put together
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


#: how deep JSON inside JSON is read; and its escapes
NESTED = 3
_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
_MEANT = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


def findings(text: str, touches: Sequence[str], markers: Markers) -> dict[str, Tier]:
    """What tightens: detector -> the tier it tightens to. Names and tiers only, never what stood there."""
    if "\\" in text:
        text = f"{text}\n{unescaped(text)}"
    found = {name: Tier(TIER_OF[name]) for name in detect(text)}
    if any(map(names_secret, touches)):
        found["secret_path"] = Tier.LOCAL_ONLY
    return found | markers.found(text, touches)


@dataclass(frozen=True, slots=True)
class Clearance:
    """What one request may do: its tier, the detectors that a person's consent has overruled, what it touches."""

    tier: Tier = Tier.LOCAL_ONLY
    overruled: frozenset[str] = frozenset()
    touches: tuple[str, ...] = ()

    def tightened(self, found: Mapping[str, Tier]) -> Tier:
        """The tier once findings that nobody overruled are taken in."""
        tier = tightest(self.tier, *(t for name, t in found.items() if name not in self.overruled))
        assert tier is not None  # its own tier is said
        return tier


#: what a request may do of which nobody says more: go to loopback
NOT_CLEARED = Clearance()


def texts(value: object) -> Iterable[str]:
    """Every string in a JSON value, keys too (a schema's are the user's words): what of a request a detector reads.

    A message's text in several parts is there once more as the model reads it, in one piece.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)
        parts = [item["text"] for item in value if isinstance(item, Mapping) and isinstance(item.get("text"), str)]
        if len(parts) > 1:
            yield "".join(parts)
