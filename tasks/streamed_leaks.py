"""Keeps a model's thoughts out of an answer that goes out as it comes; leaks.py looks at whole ones.

    opening ──► a marker so far: held ──► a thought, up to its end ──► opening again
       └─────► anything else: the answer, from here on as it is

Only thoughts that stand before the answer can be told in time: what is out stays out, so a closer without an opener
drops nothing, and later markers are text. A thought that does not end is a thought.
"""

from __future__ import annotations

#: what may stand before an answer -> what ends it; nothing where it is no thought but a mark of its own
MARKERS: dict[str, tuple[str, ...]] = {
    "<think>": ("</think>",),
    "◁think▷": ("◁/think▷",),
    "[THINK]": ("[/THINK]",),
    "<|channel|>analysis<|message|>": ("<|end|>", "<|channel|>final<|message|>"),
    "<|channel|>commentary<|message|>": ("<|end|>", "<|channel|>final<|message|>"),
    "<|start|>assistant": (),
    "<|channel|>final<|message|>": (),
    "<|channel>thought": ("<channel|>",),
    "Here's my thought process:": ("Here's my response:",),
    "Here is my thought process:": ("Here is my response:",),
}
#: characters before an answer that are held until they are told
MOST_HELD = 1_000


class Parting:
    """Parts one stream. leaked: thoughts, or marks of theirs, were taken out."""

    def __init__(self) -> None:
        self.leaked = False
        self._answers = False
        self._closers: tuple[str, ...] = ()
        self._held = ""

    def take(self, text: str) -> tuple[str, str]:
        """What is told of the answer and of the thoughts now that this came, too."""
        if self._answers:
            return text, ""
        self._held += text
        thought = ""
        while self._closers or self._opens():
            if self._closers:
                thought += self._thought()
            if self._closers:
                break
        return (self._rest() if self._answers else ""), thought

    def end(self) -> tuple[str, str]:
        """What was held, as nothing that would tell it comes any more."""
        rest = self._rest()
        thinks, self._answers, self._closers = bool(self._closers), True, ()
        return ("", rest) if thinks else (rest, "")

    def _rest(self) -> str:
        rest, self._held = self._held, ""
        return rest

    def _opens(self) -> bool:
        """Whether a marker stands first; where there can be none any more, the answer begins."""
        bare = self._held.lstrip()
        for marker, closers in MARKERS.items():
            if bare.startswith(marker):
                self._held, self._closers, self.leaked = bare[len(marker) :], closers, True
                return True
        if len(self._held) > MOST_HELD or (bare and not any(marker.startswith(bare) for marker in MARKERS)):
            self._answers = True
            self._held = bare if self.leaked else self._held
        return False

    def _thought(self) -> str:
        """What there is of the thought, but for what may be the beginning of its end."""
        ends = [(at, closer) for closer in self._closers if (at := self._held.find(closer)) >= 0]
        if ends:
            at, closer = min(ends)
            after, self._closers = at + len(closer), ()
        else:
            at = after = len(self._held) - max(_begun(self._held, closer) for closer in self._closers)
        thought, self._held = self._held[:at], self._held[after:]
        return thought


def _begun(text: str, marker: str) -> int:
    """How many of the marker's first characters the text ends with."""
    return next((n for n in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:n])), 0)
