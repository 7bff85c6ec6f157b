"""The telemetry of `anchor-offload`: one JSON line a call, appended in one write, which concurrent calls cannot part.

It goes to OFFLOAD_LOG, or to offload.jsonl in the home.  A log that cannot be written is told and changes nothing else.
"""

from __future__ import annotations

import json
import os
import time

from api.helpers import kept
from api.helpers.answers import say


def append(
    category: str, decision: str, reason: str, duration_ms: float, exit_code: int, *, pooled: bool = False
) -> None:
    """Append a line. decision: `offload` or `escalate`; reason: `none`, or words.

    pooled: the pool made the call and has it in its ledger; the line says so, so that it is not taken in from here.
    """
    line: dict[str, object] = {
        "ts": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "category": category,
        "decision": decision,
        "reason": reason,
        "duration_ms": round(duration_ms),
        "exit_code": exit_code,
    }
    if pooled:
        line["pool"] = True
    raw = json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    try:
        _write(raw)
    except OSError as error:
        say(f"anchor-offload: the telemetry log cannot be written ({error.strerror})")


def _write(raw: bytes) -> None:
    path = os.environ.get("OFFLOAD_LOG")
    if not path:
        kept.make_folder(kept.home())
        path = os.path.join(kept.home(), "offload.jsonl")
    # O_NONBLOCK: a named pipe that nobody reads is a fault, not a wait; Windows has neither
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o600)
    try:
        if os.write(file, raw) != len(raw):
            raise OSError(0, "no room for a whole line")
    finally:
        os.close(file)
