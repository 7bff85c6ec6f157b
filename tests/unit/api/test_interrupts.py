"""Ctrl-C, wherever it arrives."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

HEAD = """
import os, signal, sys, time
from api.interrupts import GoingOn, heed_swallowed

def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # the handler runs before this line is over
"""


def ran(script: str) -> tuple[int, str, str]:
    """Run a script of its own; code, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


def test_swallowed_by_a_destructor() -> None:
    """An interrupt that arrives in a destructor, where Python drops it, still ends what is waited for."""
    script = """
        class Dropped:
            def __del__(self):
                ctrl_c()

        heed_swallowed()
        with GoingOn("batch_1"):
            Dropped()
            time.sleep(60)
    """
    code, _, err = ran(script)
    assert (code, "offload wait batch_1" in err) == (130, True)


def test_waits_for_the_commit() -> None:
    """While the promise is made Ctrl-C waits, and then names the batch."""
    script = """
        with GoingOn() as going:
            going.opening("batch_1")
            ctrl_c()
            print("committed", flush=True)
            going.begun("batch_1")
            print("never")
    """
    code, out, err = ran(script)
    assert (code, out) == (130, "committed")
    assert err == "the batch goes on; come back with: offload wait batch_1; offload results batch_1"


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("ctrl_c()", "nothing was submitted"),
        (
            'going.opening("batch_1"); ctrl_c(); ctrl_c()',
            "it is not known whether the batch was submitted: offload status batch_1",
        ),
    ],
    ids=["while lines are read", "a second time"],
)
def test_does_not_wait(before: str, words: str) -> None:
    """Before the promise, and the second time, Ctrl-C ends it at once and says what is known."""
    code, out, err = ran(f"with GoingOn() as going:\n    {before}\n    print('never')")
    assert (code, out, err) == (130, "", words)


def test_ignored_stays_ignored() -> None:
    """Started where SIGINT is ignored, as by nohup, it goes on."""
    script = """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with GoingOn("batch_1"):
            ctrl_c()
            print("went on")
    """
    assert ran(script) == (0, "went on", "")
