"""What a worker does for a wish, and how the commands of a configuration are run."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from tasks.ledger.nodes import Phase, Wanted
from tests.support.waiting import eventually
from workers.draining import Step, next_step
from workers.server_commands import Ended, run_command

#: wanted -> the step from serving, draining, drained, stopped
STEPS = {
    Wanted.SERVING: (None, Step.SERVE, Step.SERVE, Step.SERVE),
    Wanted.DRAINED: (Step.HOLD, Step.EMPTY, None, None),
    Wanted.STOPPED: (Step.HOLD, Step.EMPTY, Step.STOP, None),
}


@pytest.mark.parametrize("wanted", list(Wanted))
def test_every_step_leads_to_what_is_wanted(wanted: Wanted) -> None:
    """From every phase there is one next step, and none once the wish is fulfilled; a stopped node is drained too."""
    assert tuple(next_step(wanted, phase) for phase in Phase) == STEPS[wanted]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("argv", "trouble"),
    [
        (python("print('secret')"), ""),
        (python("raise SystemExit(3)"), "ended with status 3"),
        (["/no/such/program"], "cannot be started (No such file or directory)"),
        (python("import time; time.sleep(60)"), "did not end within 0.3 s and was killed"),
    ],
)
def test_a_command_ends_in_words(argv: list[str], trouble: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Its status, or why there is none; what it prints is shown nowhere."""
    assert run_command(argv, 0.3 if "sleep" in argv[-1] else 30, threading.Event()) == trouble
    assert capfd.readouterr() == ("", "")


def test_a_command_gets_none_of_offloads_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis's and the database's passwords are in them."""
    monkeypatch.setenv("OFFLOAD_REDIS_URL", "redis://:password@host")
    monkeypatch.setenv("OF_THE_USER", "kept")
    code = f"import os; open({str(tmp_path / 'env')!r}, 'w').write(repr(dict(os.environ)))"
    assert run_command(python(code), 30, threading.Event()) == ""
    found = (tmp_path / "env").read_text()
    assert "OF_THE_USER" in found
    assert "OFFLOAD_" not in found


def test_a_worker_that_stops_leaves_its_command_to_itself(tmp_path: Path) -> None:
    """`stop` of a model server that takes long goes on, and does not hold the worker."""
    ended = threading.Event()
    ended.set()
    code = f"import time; time.sleep(0.5); open({str(tmp_path / 'done')!r}, 'w')"
    with pytest.raises(Ended):
        run_command(python(code), 30, ended)
    eventually((tmp_path / "done").exists, "the command ends by itself")
