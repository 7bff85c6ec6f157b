"""A program that gets the prompt on its standard input and answers on its standard output.

For command-line agents (`opencode run`, `gemini`): it runs in an empty folder of its own, which is removed, and in a
process group of its own, which is killed when the call is over, late or closed.  What it says on stderr is thrown
away, for it may quote the prompt.  Exit status 0 is an answer, anything else a broken call.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson

from tasks.budget import CHARS_PER_TOKEN
from tasks.errors import CallError, Misconfigured, Permanent, Transient
from workers.backends import Call, Health, Probe, Reply
from workers.backends.border import Border

#: bytes of one answer
MAX_OUTPUT_BYTES = 16 * 1024 * 1024
#: seconds between two looks whether a silent program has ended
LOOK_S = 0.5
#: seconds that the end of a killed program is waited for: one that has left its group may hold its pipe
END_S = 5.0


class Command:
    """A provider of kind `command`."""

    def __init__(self, argv: Sequence[str], name: str, border: Border) -> None:
        self._argv = list(argv)
        self._name = name
        self._border = border

    async def call(self, call: Call) -> Reply:
        """Run the program once on the prompt, if it may go there; raises CallError."""
        if call.kind == "embed":
            raise Permanent("kind_unsupported", f"{self._name}: a command makes no embeddings")
        prompt = prompt_of(call)
        await self._border.admitted(self._name, call.clearance, prompt)
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="offload-", ignore_cleanup_errors=True) as folder:
            text = await self._run(prompt.encode(errors="surrogatepass"), folder, call.timeouts.total)
        took = (time.monotonic() - began) * 1000
        return Reply(  # a program counts no tokens
            call.model,
            text.strip(),
            tokens_in=int(len(prompt) / CHARS_PER_TOKEN),
            tokens_out=int(len(text) / CHARS_PER_TOKEN),
            first_token_ms=took,
            duration_ms=took,
        )

    async def _run(self, prompt: bytes, folder: str, seconds: float) -> str:
        process = await self._started(folder)
        try:
            async with asyncio.timeout(seconds):
                output = await _talk(process, prompt)
                status = await process.wait() if output is not None else None
        except TimeoutError:
            raise Transient("total_timeout", f"{self._name}: the command took longer than it may") from None
        finally:
            await _end(process)
        if output is None:
            large = f"{self._name}: the answer is over {MAX_OUTPUT_BYTES >> 20} MiB"
            raise Permanent("output_too_large", large, "answer")
        if status != 0:
            raise Transient(
                "command_failed", f"{self._name}: the command ended with status {status}; its own words are not kept"
            )
        return output.decode("utf-8", "replace")

    async def _started(self, folder: str) -> asyncio.subprocess.Process:
        """The program, begun; a call that is cancelled meanwhile ends it as soon as it is there.

        asyncio itself would then wait for ever: for the end of pipes that it has not taken up yet.
        """
        starting = asyncio.ensure_future(self._start(folder))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            with contextlib.suppress(CallError):
                await _end(await starting)
            raise

    async def _start(self, folder: str) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                *self._argv,
                cwd=folder,
                env={k: v for k, v in os.environ.items() if not k.startswith("OFFLOAD_")},  # Redis's password is there
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_end_with_worker if _prctl is not None else None,
            )
        except OSError as error:
            reason = f"{self._name}: {self._argv[0]} cannot be started ({error.strerror})"
            raise Misconfigured("no_command", reason) from None

    async def probe(self) -> Probe:
        """Whether the program is there; it is not run."""
        if shutil.which(self._argv[0]) is None:
            return Probe(Health.MISCONFIGURED, f"there is no program {self._argv[0]}")
        return Probe(Health.HEALTHY, server="command")

    async def unload(self, models: Collection[str]) -> bool:
        """A program holds nothing between calls."""
        return True

    async def aclose(self) -> None:
        """Nothing is held between calls."""


_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # looked up before any fork


def _end_with_worker() -> None:
    """In the program, before it runs: it is killed when the worker is, so that it does not work for nobody."""
    assert _prctl is not None
    _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill it with all that it started; asyncio sees its end only once its pipe was read to the end."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    assert process.stdout is not None  # a pipe
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_S):
            while await process.stdout.read(1 << 16):
                pass
            await process.wait()


async def _talk(process: asyncio.subprocess.Process, prompt: bytes) -> bytes | None:
    """Give the prompt and read the answer side by side; None for one that is too large."""
    assert process.stdin is not None  # both are pipes
    assert process.stdout is not None
    writing = asyncio.create_task(_write(process.stdin, prompt))
    output = bytearray()
    try:
        while chunk := await _next(process, process.stdout):
            output += chunk
            if len(output) > MAX_OUTPUT_BYTES:
                return None
    finally:
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing
    return bytes(output)


async def _next(process: asyncio.subprocess.Process, stdout: asyncio.StreamReader) -> bytes:
    """The next bytes; none at the end, or once the program has ended and only what it left behind holds its pipe."""
    while True:
        ended = process.returncode is not None
        try:
            async with asyncio.timeout(LOOK_S):
                return await stdout.read(1 << 16)
        except TimeoutError:
            if ended:
                return b""


async def _write(stdin: asyncio.StreamWriter, prompt: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # a program that reads only the beginning
        stdin.write(prompt)
        await stdin.drain()
        stdin.close()
        await stdin.wait_closed()


def prompt_of(call: Call) -> str:
    """A call as one text: instructions first, then the conversation, whose turns are named where there are several."""
    if call.kind == "complete":
        return call.prompt
    system = [_text(m) for m in call.messages if m.get("role") in ("system", "developer")]
    turns = [m for m in call.messages if m.get("role") not in ("system", "developer")]
    said = [_text(m) if len(turns) == 1 else f"{m.get('role')}: {_text(m)}" for m in turns]
    return "\n\n".join(filter(None, [*system, *said, _form(call)]))


def _form(call: Call) -> str:
    if call.schema is None:
        return ""
    return f"JSON Schema of the answer:\n{orjson.dumps(call.schema).decode()}"


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if not isinstance(content, list):
        return str(content or "")
    if any(part.get("type") != "text" for part in content):
        raise Permanent("bad_request", "a command takes text only")
    return "\n".join(str(part.get("text", "")) for part in content)
