"""A pool whose finished work is audited: a local model, and a program in the cloud's place that gives opinions."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scheduler import audit
from tasks.ledger import audits
from tests.support.pool import TestPool, running, simulated

#: an auditor of few words: it disagrees where the request says WRONG, and is unsure where it says ODD
AUDITOR = """#!{python}
import json, sys
asked = sys.stdin.read()
verdict = "disagree" if "WRONG" in asked else "unsure" if "ODD" in asked else "agree"
said = {{"label": "**Bug.**"}} if '"label"' in asked else {{"verdict": verdict}}
print(json.dumps(said | {{"reason": "so"}}))
"""


@contextmanager
def audited(folder: Path, url: str) -> Iterator[TestPool]:
    """A worker at home on the simulator at `url`, and the auditor; no beat: the tests say when it is time."""
    program = folder / "auditor.py"
    program.write_text(AUDITOR.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    config = simulated(url, in_flight=64)
    config["providers"].append({"name": "judge", "kind": "command", "command": [str(program)], "in_flight": 8})
    config["classes"]["cloud"] = {"serve": [{"provider": "judge", "model": "judge-1"}]}
    config["audit"] = {"private_class": "coder"}
    with running(folder, config) as made:
        made.worker()
        made.worker(provider="judge")
        yield made


def tick(pool: TestPool) -> None:
    """One tick of the audit, and of dispatch."""
    audit.run_once(pool.db, pool.pool.registry)
    pool.pool.dispatch()


def settled(pool: TestPool) -> bool:
    """Whether every audit is judged or waits for a person."""
    tick(pool)
    return set(audits.counted(pool.db)) <= {"agree", "disagree", "unsure", "person"}
