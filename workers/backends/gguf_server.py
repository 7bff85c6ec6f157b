"""llama.cpp's own server in a child process, for providers of kind `gguf`.

    parent: GgufServer ── starts ──► child: python -m workers.backends.gguf_server OPTIONS
                       ── key by environment, stdin held open ──►
                       ◄── one JSON line: {"url": …} or {"error": …} ──

The child serves OpenAI's protocol on a free loopback port and dies with its parent: it ends when its stdin
does, and on Linux the kernel ends it too.  A process of its own, because llama.cpp aborts on what it does not
like, and because a model's threads must not take turns with the worker's loop.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any, NoReturn

from tasks.errors import PoolError

#: the environment variable that carries the API key; an argument would show in every list of processes
KEY_VARIABLE = "OFFLOAD_GGUF_KEY"
#: tokens in one slot, unless the provider says otherwise
DEFAULT_CONTEXT = 8192
#: tokens processed at once; the longest input of an embedding, which llama.cpp does not split
MAX_BATCH = 2048
#: seconds the child has to end by itself
STOP_GRACE = 5.0

_PR_SET_PDEATHSIG = 1


class GgufServer:
    """The parent's side: one model file, served while this object runs.

    slots: requests at once. context: tokens in each slot. threads: 0 means half of the logical cores.
    """

    def __init__(self, path: str | Path, slots: int = 4, context: int = DEFAULT_CONTEXT, threads: int = 0) -> None:
        self.path = Path(path).expanduser()
        self.api_key = secrets.token_urlsafe(32)
        self.url = ""  #: the base with its /v1, once started
        self._options = {"slots": slots, "context": context, "threads": threads or _cores()}
        self._process: Popen[bytes] | None = None

    @property
    def model(self) -> str:
        """The name it serves the model by: the file's, without its ending."""
        return self.path.stem

    @property
    def alive(self) -> bool:
        """Whether the child runs."""
        return self._process is not None and self._process.poll() is None

    async def start(self, timeout: float = 600.0) -> None:
        """Load the model and listen; raises PoolError when that fails or takes more than `timeout` seconds.

        Call it from a thread that lives as long as the server shall: Linux counts the thread that started a
        child as its parent.
        """
        self._check()
        self._process = self._spawn()
        try:
            async with asyncio.timeout(timeout):
                self.url = await self._address(self._process)
        except TimeoutError:
            raise PoolError(f"{self.path}: llama.cpp did not load it within {timeout:g} s") from None
        finally:
            if not self.url:
                self._process.kill()  # also ends the thread that reads its answer
                await self.stop()

    async def stop(self) -> None:
        """End the child; harmless when there is none."""
        process, self._process, self.url = self._process, None, ""
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            await asyncio.to_thread(process.wait, STOP_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)
        process.stdout.close()

    def _check(self) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise PoolError("serving a GGUF file needs llama.cpp: pip install xllamacpp")
        try:
            with self.path.open("rb") as file:
                magic = file.read(4)
        except OSError as error:
            raise PoolError(f"{self.path}: cannot be read ({error.strerror})") from None
        if magic != b"GGUF":
            raise PoolError(f"{self.path}: this is no GGUF file")

    def _spawn(self) -> Popen[bytes]:
        root = str(Path(__file__).resolve().parents[2])
        found = os.environ.get("PYTHONPATH")
        environment = os.environ | {
            KEY_VARIABLE: self.api_key,
            "PYTHONPATH": f"{root}{os.pathsep}{found}" if found else root,
        }
        options = [f"--{name}={value}" for name, value in self._options.items()]
        # -P: what lies in the working directory must not pose as a module
        command = [sys.executable, "-P", "-m", "workers.backends.gguf_server", *options, str(self.path)]
        return Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment)

    async def _address(self, process: Popen[bytes]) -> str:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        try:
            said: dict[str, Any] = json.loads(line) if line else {}
        except ValueError:
            raise PoolError(f"{self.path}: llama.cpp's child printed something else than its address") from None
        if "url" in said:
            return f"{said['url']}/v1"
        reason = said.get("error") or "it crashed while loading"
        raise PoolError(f"{self.path}: llama.cpp cannot serve it: {reason}")


def _cores() -> int:
    """The physical cores, about.

    llama.cpp's threads spin at barriers, so one that has to wait for a core stops all the others.  Measured
    with the tiny model on 2 busy cores: 100 tokens in 1,200 ms with 2 threads, 22 ms with 1.
    """
    return max(1, (os.cpu_count() or 2) // 2)


def main() -> None:
    """The child's side."""
    parser = argparse.ArgumentParser(prog="gguf_server")
    parser.add_argument("path")
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens in each slot")
    parser.add_argument("--threads", type=int, required=True)
    asked = parser.parse_args()
    key = os.environ.pop(KEY_VARIABLE)
    _die_with_parent()
    try:
        server = _serve(asked, key)
    except RuntimeError:  # all that xllamacpp says, whatever is wrong
        _say(error="the file is damaged, too large for the memory, or a kind of model it does not know")
        sys.exit(1)
    _say(url=server.listening_address)
    _wait_for_parent()


def _serve(asked: argparse.Namespace, key: str) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = asked.path
    params.model_alias = {Path(asked.path).stem}
    params.port = 0
    params.api_keys = [key]
    params.n_parallel = asked.slots
    params.n_ctx = asked.context * asked.slots  # split evenly over the slots
    params.n_batch = params.n_ubatch = min(asked.context, MAX_BATCH)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked.threads
    params.n_threads_http = asked.slots + 4  # a stream holds one; the rest answer /health meanwhile
    params.embedding = True  # chat keeps working
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.use_jinja = True
    params.warmup = False
    params.endpoint_metrics = True
    params.ui = False
    # force_pure_content_parser stays unset: it switches constraints on the output off
    return xllamacpp.Server(params)


def _die_with_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # it may die while the model loads, so this watch begins before
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> NoReturn:
    """End at once when stdin does: there is nothing to save, and llama.cpp's own shutdown can hang."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def _say(**what: str) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
