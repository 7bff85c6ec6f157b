"""A program as a provider: real processes, given the prompt on standard input."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.errors import CallError, Misconfigured, OutOfReach, Permanent, Transient
from tasks.privacy import Clearance, Reach, Tier
from tests.support.processes import ended
from tests.support.waiting import eventually
from workers.backends import Call, Health, Reply, Timeouts, command
from workers.backends.border import Border
from workers.backends.command import Command, prompt_of

LEAVES = Clearance(Tier.CLOUD_OK)


def program(folder: Path, code: str) -> Command:
    """A backend whose program is this Python code."""
    path = folder / "agent"
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return Command([str(path), "--flag"], "agent", Border(Reach.CLOUD))


def chat(prompt: str, seconds: float = 30.0, **fields: Any) -> Call:
    """A chat of one message that may leave."""
    fields.setdefault("clearance", LEAVES)
    timeouts = Timeouts(total=seconds)
    return Call("chat", "m", messages=[{"role": "user", "content": prompt}], timeouts=timeouts, **fields)


def run(backend: Command, call: Call) -> Reply:
    """The reply to one call."""
    return asyncio.run(backend.call(call))


ECHO = "import os, sys; print(sys.argv[1], os.listdir(), sys.stdin.read()); print('noise', file=sys.stderr)"


def test_it_gets_the_prompt_and_answers_on_stdout(tmp_path: Path) -> None:
    """Its arguments are as configured, its folder is empty, its stdout is the answer, its stderr is nobody's."""
    reply = run(program(tmp_path, ECHO), chat("Grüße"))
    assert reply.text == "--flag [] Grüße"
    assert (reply.model, reply.finish_reason) == ("m", "stop")
    assert reply.tokens_out > 0


def test_a_conversation_is_one_text() -> None:
    """Instructions come first; turns are named where there are several; a schema is shown."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}]
    assert prompt_of(Call("chat", "m", messages=messages)) == "Be brief.\n\nHi."
    more = [*messages, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Bye."}]
    assert prompt_of(Call("chat", "m", messages=more)) == "Be brief.\n\nuser: Hi.\n\nassistant: Yes?\n\nuser: Bye."
    assert '{"type":"object"}' in prompt_of(Call("chat", "m", messages=messages, schema={"type": "object"}))


@pytest.mark.parametrize(
    ("code", "error", "word"),
    [
        ("import sys; sys.stdin.read(); sys.exit(3)", Transient, "command_failed"),
        ("import os; os.kill(os.getpid(), 9)", Transient, "command_failed"),
        ("import time; time.sleep(60)", Transient, "total_timeout"),
        ("while True: print('x' * 100000)", Permanent, "output_too_large"),
    ],
    ids=["status", "killed", "hangs", "endless"],
)
def test_how_it_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, error: type[CallError], word: str
) -> None:
    """A status, a signal, a hang and an endless answer each have their error, none of which shows the prompt."""
    monkeypatch.setattr(command, "MAX_OUTPUT_BYTES", 1 << 20)
    with pytest.raises(CallError) as raised:
        run(program(tmp_path, code), chat("secret words", seconds=1.0 if word == "total_timeout" else 30.0))
    assert (type(raised.value), raised.value.code) == (error, word)
    assert not isinstance(raised.value, Permanent) or raised.value.had == "answer"
    assert "secret" not in str(raised.value)


def test_one_that_does_not_read_still_answers(tmp_path: Path) -> None:
    """A program that ends before it has read a long prompt has answered all the same."""
    assert run(program(tmp_path, "print('early')"), chat("x" * 1_000_000)).text == "early"


def test_nothing_of_it_is_left(tmp_path: Path) -> None:
    """What it has started itself is killed with it when its call is closed, and its folder is gone."""
    note = tmp_path / "note"
    code = (
        "import os, subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"pathlib.Path({str(note)!r}).write_text(f'{{child.pid}} {{os.getcwd()}}')\n"
        "time.sleep(600)"
    )
    backend = program(tmp_path, code)

    async def close_it() -> None:
        call = asyncio.create_task(backend.call(chat("x")))
        while not note.exists() or not note.read_text():
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    asyncio.run(close_it())
    pid, _, folder = note.read_text().partition(" ")
    eventually(lambda: ended(int(pid)), "it is gone")
    assert not Path(folder).exists()


def test_one_cancelled_while_its_program_starts_ends(tmp_path: Path) -> None:
    """Whenever a call is cancelled, it is over soon, and so is its program with what that has started."""
    path = tmp_path / "agent"
    path.write_text("#!/bin/sh\nsaid=$(cat)\n")
    path.chmod(0o755)
    backend = Command([str(path)], "agent", Border(Reach.CLOUD))

    async def cancelled(turns: int) -> None:
        call = asyncio.create_task(backend.call(chat("x", 600)))
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(0.1)  # the loop is held up, and the program has a program of its own by now
        call.cancel()
        await asyncio.wait({call}, timeout=20)
        assert call.done(), f"cancelled after {turns} turns of the loop"

    async def all_of_them() -> None:
        for turns in range(1, 8):
            await cancelled(turns)

    asyncio.run(all_of_them())
    here = str(tmp_path)
    eventually(
        lambda: not any(here in " ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])), "no"
    )


def test_a_program_that_is_not_there() -> None:
    """It is the configuration's fault, for calls and for probes, and a probe runs nothing."""
    backend = Command(["/nowhere/agent"], "agent", Border(Reach.CLOUD))
    with pytest.raises(Misconfigured):
        run(backend, chat("x"))
    assert asyncio.run(backend.probe()).health is Health.MISCONFIGURED
    assert asyncio.run(Command(["sh", "-c", "exit 1"], "agent", Border(Reach.CLOUD)).probe()).health is Health.HEALTHY


@pytest.mark.parametrize("call", [chat("x", clearance=Clearance(Tier.LAN_OK)), chat("to jo.doe@acme-corp.com")])
def test_what_may_not_leave_starts_no_program(tmp_path: Path, call: Call) -> None:
    """A command is a cloud unless declared otherwise, and is not even started for what may not go there."""
    note = tmp_path / "note"
    with pytest.raises(OutOfReach):
        run(program(tmp_path, f"open({str(note)!r}, 'w')"), call)
    assert not note.exists()


def test_what_is_no_text_fails_that_job(tmp_path: Path) -> None:
    """Images and embeddings are a permanent error."""
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]
    for call in (Call("chat", "m", messages=image, clearance=LEAVES), Call("embed", "m", inputs=["x"])):
        with pytest.raises(Permanent):
            run(program(tmp_path, "print(1)"), call)


@pytest.mark.slow
def test_one_that_leaves_something_running_has_answered(tmp_path: Path) -> None:
    """A program that has ended is not waited for longer because what it started holds its pipe."""
    code = "import subprocess; p = subprocess.Popen(['sleep', '600'], start_new_session=True); print('done', p.pid)"
    word, pid = run(program(tmp_path, code), chat("x", seconds=60)).text.split()
    assert word == "done"
    psutil.Process(int(pid)).kill()


CALLER = """
import asyncio, sys
from tests.contract.test_command_backend import LEAVES, Border, Call, Command, Reach
asyncio.run(Command([sys.argv[1]], "agent", Border(Reach.LOCAL)).call(Call("chat", "m", clearance=LEAVES)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells a child of its parent's death")
def test_it_ends_with_its_worker(tmp_path: Path) -> None:
    """kill -9 of the worker leaves no program behind that works for nobody."""
    told = tmp_path / "pid"
    program(tmp_path, f"import os, time; open({str(told)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    worker = subprocess.Popen([sys.executable, "-c", CALLER, str(tmp_path / "agent")])
    try:
        pid = int(eventually(lambda: told.exists() and told.read_text(), "it runs"))
        worker.kill()
        eventually(lambda: ended(pid), "it ended", 5)
    finally:
        worker.kill()
        worker.wait()


def test_it_is_told_nothing_of_the_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No OFFLOAD_ variable reaches it: Redis's address holds a password."""
    monkeypatch.setenv("OFFLOAD_REDIS_URL", "redis://:word@127.0.0.1/0")
    code = "import os; print([name for name in os.environ if name.startswith('OFFLOAD')])"
    assert run(program(tmp_path, code), chat("x")).text == "[]"
