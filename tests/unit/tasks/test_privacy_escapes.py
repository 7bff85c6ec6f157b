"""JSON inside JSON is read as it is meant."""

from __future__ import annotations

import json

import pytest

from tasks.privacy import Markers, Tier, findings, unescaped

MARKERS = Markers(words={"VERTRÄGE": Tier.LOCAL_ONLY})


@pytest.mark.parametrize("deep", [0, 1, 2, 3])
def test_a_marker_is_found_however_deep_it_is_escaped(deep: int) -> None:
    """The arguments of a tool's call are JSON in a string, and may hold JSON again."""
    text = "die VERTRÄGE von 2026"
    for _ in range(deep):
        text = json.dumps({"x": text})
    assert Tier.LOCAL_ONLY in findings(text, (), MARKERS).values()


def test_escapes_are_read() -> None:
    """Those of JSON, characters of two halves too; what is none stays."""
    assert unescaped(r"a\u0053\n\ud83d\ude00 \x \u12") == "aS\n\U0001f600 \\x \\u12"
