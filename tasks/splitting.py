"""A long text in pieces, cut where a reader would cut it.  Pure.

Boundaries, the best first: a blank line before a line at the margin (a function, a paragraph), any blank line, a
heading or the beginning of a function, the end of a line, a blank, and without all these, between two characters.
"""

from __future__ import annotations

import re

#: what a piece may end with, the best first; each is ASCII, so that no cut falls into a character
_BOUNDARIES = (
    re.compile(rb"\n[ \t\r]*\n(?=[^\s])"),
    re.compile(rb"\n[ \t\r]*\n"),
    re.compile(
        rb"\n(?=[ \t]*(?:#{1,6} |@|(?:async |export |pub |public |private |protected |static )*"
        rb"(?:def|class|fn|func|function|impl|struct|enum|interface|trait|module|namespace) ))"
    ),
    re.compile(rb"\n"),
    re.compile(rb"[ \t]"),
)
#: bytes of the longest character
LEAST = 4


def split(text: str, most: int) -> list[str]:
    """The text in pieces of `most` UTF-8 bytes at most, LEAST or more; put together again they are the text."""
    if most < LEAST:
        raise ValueError(f"a piece has room for {LEAST} bytes at least")
    data = text.encode()
    pieces, start = [], 0
    while len(data) - start > most:
        end = _cut(data, start, start + most)
        pieces.append(data[start:end].decode())
        start = end
    return [*pieces, data[start:].decode()]


def _cut(data: bytes, start: int, end: int) -> int:
    """The best place to cut in the second half of the window, so that pieces do not get tiny."""
    window, half = data[start:end], (end - start) // 2
    for boundary in _BOUNDARIES:
        if ends := [match.end() for match in boundary.finditer(window, half)]:
            return start + ends[-1]
    while data[end] & 0xC0 == 0x80:  # the middle of a character
        end -= 1
    return end
