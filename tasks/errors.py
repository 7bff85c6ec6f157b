"""Every error of the pool, one tree.

    OffloadError                    exit  what it means
    ├── UsageError                   2    bad input or configuration; the person can mend it
    │   ├── ConfigError              2    offload.yaml, an OFFLOAD_ variable
    │   ├── InputError               2    faults in job lines, all of them at once
    │   ├── Conflict                 2    the same idempotency key for something else
    │   └── QueueFull                2    a key of the API would have more unfinished jobs than it may
    ├── NotFound                     5    no such batch
    ├── NotInTime                    4    --timeout passed; the work goes on
    ├── PoolError                    1    the pool itself: already running, no Redis server, …
    │   ├── OtherTables              1    the ledger's tables are another version's
    │   ├── StaleWorker              1    this process no longer owns its name
    │   ├── GivenUp                  1    a submit that was silent for too long, and maybe begun by another
    │   └── BrokerDown               1    Redis does not answer; the jobs wait in the ledger
    └── CallError                         how one call to a model server went wrong
        ├── Busy                          429, 503: the server lives; wait, no attempt is burned
        ├── Offline                       refused, no route: nobody answered; no attempt is burned
        ├── Transient                     reset, timed out, 5xx, broken reply: burns an attempt
        ├── BadOutput                     the answer failed its checks: burns an attempt
        ├── OutOfReach                    privacy forbids this way: nothing was sent, no attempt is burned
        ├── Misconfigured                 401, 403, 404 model: burns an attempt; the provider is probed first
        └── Permanent                     400, too long for the context: this job fails now

The message of an error is for the person who reads it: what was wrong, where, what to do.
No message ever holds a prompt or an output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


class OffloadError(Exception):
    """Something went wrong in the pool."""

    #: the exit code of a command that ends in this error
    exit_code = 1


class UsageError(OffloadError):
    """The input or the configuration is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """The configuration is wrong."""


class Conflict(UsageError):
    """The same idempotency key was used for something else: other lines, or more urgent ones, say."""


class QueueFull(UsageError):
    """A key of the API has as many unfinished jobs as it may have, or would have more with these."""


@dataclass(frozen=True)
class LineFault:
    """One fault of one input line.

    line: 1-based; 0 for the file as a whole. field: dotted path, empty for the whole line.
    """

    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.field + ': ' if self.field else ''}{self.reason}"


class InputError(UsageError):
    """Job lines have faults; nothing was submitted."""

    def __init__(self, faults: Sequence[LineFault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = tuple(faults)


class NotFound(OffloadError):
    """There is no such batch."""

    exit_code = 5


class NotInTime(OffloadError):
    """The time given has passed; the work goes on."""

    exit_code = 4


class PoolError(OffloadError):
    """The pool cannot do this now."""


class OtherTables(PoolError):
    """The ledger's tables are another version's."""


class StaleWorker(PoolError):
    """Another process has taken this worker's name."""


class GivenUp(PoolError):
    """This submit was silent for so long that it was given up; another may have begun it again."""


class BrokerDown(PoolError):
    """Redis does not answer; the jobs wait in the ledger."""


class CallError(OffloadError):
    """A call to a model server went wrong.

    code: a short stable word, kept on the call row and on the job's error.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Busy(CallError):
    """The server lives and takes nothing more now.

    retry_after: seconds the server asked for, if it said so.
    """

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(code, message)
        self.retry_after = retry_after


class Offline(CallError):
    """Nobody answers at the provider's address."""


class Transient(CallError):
    """The call failed in a way that may not happen again."""


class BadOutput(CallError):
    """The answer failed its checks."""


class OutOfReach(CallError):
    """Privacy forbids to send this there.

    tier: what the request's privacy comes to, detectors included.
    """

    def __init__(self, tier: str, message: str) -> None:
        super().__init__("out_of_reach", message)
        self.tier = tier


class Misconfigured(CallError):
    """The provider refuses the key or does not have the model."""


class Permanent(CallError):
    """The call can never succeed as it is.

    had: what the server has counted of it: nothing, a request that it turned down, or an answer that is of no use.
    """

    def __init__(self, code: str, message: str, had: Literal["nothing", "request", "answer"] = "nothing") -> None:
        super().__init__(code, message)
        self.had = had
