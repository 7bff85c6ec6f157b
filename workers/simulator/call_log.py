"""One record per generation request: counters that never drop, the latest records, and a JSONL file if asked
for.

A record, as it is in GET /sim/calls and in the file:

    at           unix seconds, when the request came
    route        the path asked for
    model        as the client wrote it
    prompt       the first 16 hex digits of sha256 over what is no system text (inputs joined by newlines)
    request_id   x-request-id, or null
    job          X-Offload-Job, or null
    status       the HTTP status; 0 when none was sent
    fault        what was played, "" for nothing
    ms           until the reply was handed to the socket
    tokens_in, tokens_out
    closed       the client went, or the simulator broke the connection
    truncated_prompt   the prompt was too long and was cut in silence (Ollama)
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import asdict, dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

import orjson

#: records kept in memory
KEPT = 10_000
#: seconds a record may stay in the file's buffer
FLUSH_S = 0.1


@dataclass(slots=True)
class Call:
    """One request; the module's docstring says what each field is."""

    at: float
    route: str
    model: str = ""
    prompt: str = ""
    request_id: str | None = None
    job: str | None = None
    status: int = 0
    fault: str = ""
    ms: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    closed: bool = False
    truncated_prompt: bool = False


class CallLog:
    """Keeps and counts calls; writes them to `path` when there is one."""

    def __init__(self, path: Path | None) -> None:
        self.calls: deque[Call] = deque(maxlen=KEPT)
        self._file: BufferedWriter | None = None
        self._flush: asyncio.TimerHandle | None = None
        self.forget()
        self.open(path)

    def forget(self) -> None:
        """Counters to nothing and no record in memory; the file stays as it is."""
        self.calls.clear()
        self.requests = self.closed = self.truncated = self.tokens_in = self.tokens_out = 0
        self.statuses: Counter[int] = Counter()
        self.faults: Counter[str] = Counter()
        self.models: Counter[str] = Counter()

    def open(self, path: Path | None) -> None:
        """Append to another file from now on, or to none. Raises OSError."""
        self.close()
        self._file = path.open("ab") if path else None

    def close(self) -> None:
        """Write what is buffered."""
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def add(self, call: Call) -> None:
        """Count and keep one call."""
        self.requests += 1
        self.closed += call.closed
        self.truncated += call.truncated_prompt
        self.tokens_in += call.tokens_in
        self.tokens_out += call.tokens_out
        self.statuses[call.status] += 1
        self.models[call.model] += 1
        if call.fault:
            self.faults[call.fault] += 1
        self.calls.append(call)
        if self._file is not None:
            self._write(call)

    def _write(self, call: Call) -> None:
        assert self._file is not None
        self._file.write(orjson.dumps(call) + b"\n")
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(FLUSH_S, self._flush_now)

    def _flush_now(self) -> None:
        self._flush = None
        if self._file is not None:
            self._file.flush()

    def latest(self, limit: int) -> list[dict[str, Any]]:
        """The last `limit` records, the oldest of them first."""
        return [asdict(call) for call in list(self.calls)[-limit:]] if limit > 0 else []

    def counts(self) -> dict[str, Any]:
        """Every counter."""
        return {
            "requests": self.requests,
            "closed": self.closed,
            "truncated_prompts": self.truncated,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "statuses": {str(status): n for status, n in self.statuses.items()},
            "faults": dict(self.faults),
            "requests_by_model": dict(self.models),
        }
