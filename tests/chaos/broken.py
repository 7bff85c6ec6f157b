"""Copies of the source tree in which one promise is switched off: the proof must turn red on each."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Break:
    """Which promise: texts in files -> what stands there instead; the strikes that show it, and how they tell."""

    edits: tuple[tuple[str, str, str], ...]
    faults: str
    runs: int  #: at most; it stops at the first that shows it
    sign: str


BREAKS = {
    "fence": Break(
        (
            ("tasks/ledger/record.py", "if held.get(o.job_id) == o.fence:", "if o.job_id in held:"),
            ("tasks/ledger/record.py", 'jobs.c.fence == bindparam("b_fence")', 'jobs.c.fence >= bindparam("b_fence")'),
        ),
        "6",
        16,
        "its result",
    ),
    "sweep": Break(
        (("scheduler/sweep.py", "sweeping.take_back_expired(db, registry)", "Counter[str]()"),),
        "2",
        3,
        "no recovery",
    ),
    "one-result": Break(
        (
            (
                "tasks/ledger/claims.py",
                ".where(jobs.c.id.in_(some), jobs.c.state == JobState.RUNNING)\n            .order_by(jobs.c.id)\n"
                "            .with_for_update()",
                ".where(jobs.c.id.in_(some))\n            .order_by(jobs.c.id)\n            .with_for_update()",
            ),
            ("tasks/ledger/record.py", ", jobs.c.state == JobState.RUNNING)", ")"),
        ),
        "26",
        8,
        "cancelled became",
    ),
}


def copy(name: str, folder: Path) -> Break:
    """Make the copy; raises AssertionError when a text to replace is not there exactly once."""
    made = BREAKS[name]
    for part in ("tasks", "workers", "scheduler", "api", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file, text, instead in made.edits:
        path = folder / file
        source = path.read_text()
        assert source.count(text) == 1, f"{file} has {text!r} {source.count(text)} times"
        path.write_text(source.replace(text, instead))
    return made
