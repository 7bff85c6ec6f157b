"""What came of all strikes: numbers by ledger and fault, as a table for people."""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from tests.chaos.faults import TABLE

#: wrong things shown of each row
SHOWN = 5
#: kinds that a busy machine may bring about: a bound on a time was missed
TIMES = {"I8", "I9", "time"}


class Row:
    """One fault on one ledger."""

    def __init__(self) -> None:
        self.started = self.counted = self.jobs = self.wasted = self.late = 0
        self.recovery: list[float] = []
        self.within = 0.0
        self.uncounted = 0
        self.kinds: Counter[str] = Counter()
        self.told: list[str] = []
        self.before = ""  #: how it was red, where it was struck again because only a time was missed


class Tally:
    """Adds up what pools report; says on stderr what happens."""

    def __init__(self, faults: Sequence[int], ledgers: Sequence[str], runs: int, divisor: float) -> None:
        self.faults, self.ledgers, self.runs, self.divisor = faults, ledgers, runs, divisor
        self.rows: defaultdict[tuple[str, int], Row] = defaultdict(Row)
        self.broke: list[str] = []
        self.began = time.time()

    def hear(self, ledger: str, what: dict[str, Any]) -> None:
        """One line of a pool."""
        if report := what.get("report"):
            self._strike(ledger, report)
        elif end := what.get("end"):
            for number, n in end["jobs"].items():
                self.rows[ledger, int(number)].jobs += n
            for number, wrong in end["wrong"]:
                self._wrong(self.rows[ledger, number], wrong, "at the end")
                _say(f"{ledger} at the end, fault {number}: {wrong['what']}")
        else:
            self.broke.append(f"{ledger}: {what['broke']}")
            _say(f"{ledger}: {what['broke']}\n{what['where']}")

    def _strike(self, ledger: str, report: dict[str, Any]) -> None:
        row = self.rows[ledger, report["fault"]]
        row.started += 1
        row.counted += report["counted"]
        row.wasted += report["wasted"]
        row.within = max(row.within, report["within"])
        row.uncounted += report["uncounted"]
        if report["counted"]:
            row.recovery.append(report["recovery"])
        row.late += bool(report["wrong"])
        for wrong in report["wrong"]:
            self._wrong(row, wrong, f"seed {report['seed']}")
        recovery = "-" if report["recovery"] is None else f"{report['recovery']:.2f} s"
        _say(
            f"{ledger} {report['fault']:>2} seed {report['seed']}: "
            f"{'' if report['counted'] else 'not counted, '}{report['hit']} hit, recovery {recovery}, "
            f"wasted {report['wasted']}, took {report['took']:.1f} s at load {report['load']:.1f}  {report['note']}"
            + "".join(f"\n    WRONG {w['what']}" for w in report["wrong"])
        )

    def _wrong(self, row: Row, wrong: dict[str, Any], where: str) -> None:
        row.kinds[wrong["kind"]] += wrong["jobs"]
        row.told.append(f"{wrong['what']} ({where})")

    def verdict(self, ledger: str, number: int) -> str:
        """Of one row: green, or why it is red."""
        row = self.rows[ledger, number]
        if row.kinds:
            return "RED: " + ", ".join(f"{kind} {n}" for kind, n in sorted(row.kinds.items()))
        if number and row.counted < self.runs:
            return f"RED: {row.counted} of {self.runs} runs"
        return f"green; struck again alone for {row.before}" if row.before else "green"

    def late(self, ledger: str) -> tuple[int, ...]:
        """The faults that are red for nothing but time, or for runs that hit nothing."""
        rows = {n: self.rows[ledger, n] for n in self.faults}
        return tuple(n for n, row in rows.items() if set(row.kinds) <= TIMES and self.is_bad(ledger, n))

    def is_bad(self, ledger: str, number: int) -> bool:
        """Whether a row is red."""
        return self.verdict(ledger, number).startswith("RED")

    def strike_again(self, ledger: str, numbers: Sequence[int]) -> int:
        """Forgive these rows the times they missed, as they are struck again; the runs that make up for them."""
        runs = 0
        for number in numbers:
            row = self.rows[ledger, number]
            runs = max(runs, row.late, self.runs - row.counted)
            row.before, row.late = self.verdict(ledger, number).removeprefix("RED: "), 0
            row.kinds.clear()
            row.told = [f"struck again after {told}" for told in row.told]
        return runs

    @property
    def is_red(self) -> bool:
        """Whether anything is wrong anywhere."""
        at_the_end = {key for key in self.rows if key[1] == 0}
        keys = {(ledger, number) for ledger in self.ledgers for number in self.faults} | at_the_end
        return bool(self.broke) or any(self.is_bad(*key) for key in keys)


def table(tally: Tally, seed: int, command: str) -> str:
    """The whole of it as Markdown."""
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(tally.began))
    jobs = sum(row.jobs for row in tally.rows.values())
    took = time.time() - tally.began
    lines = [
        f"{when} · seed {seed} · `{command}` · {', '.join(tally.ledgers)} · times divided by {tally.divisor:g} · "
        f"{jobs} jobs in {took / 60:.1f} minutes",
        "",
        "| ledger | fault | runs | jobs | lost | twice | wasted calls | recovery p50 | max | bound | beyond it "
        "| allowed at its load | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for ledger in tally.ledgers:
        lines += [_line(tally, ledger, number) for number in sorted(tally.faults)]
        if (ledger, 0) in tally.rows:
            lines.append(_line(tally, ledger, 0))
    lines += ["", *_reds(tally)]
    return "\n".join(lines).rstrip()


def _line(tally: Tally, ledger: str, number: int) -> str:
    row = tally.rows[ledger, number]
    words = f"{number} {TABLE[number].words}" if number else "between strikes"
    times = f"{statistics.median(row.recovery):.2f} s | {max(row.recovery):.2f} s" if row.recovery else "- | -"
    bound = TABLE[number].says(tally.divisor) if number else 0.0
    beyond = sum(seconds > bound for seconds in row.recovery)
    unchecked = f", calls not held against their bound {row.uncounted} times" if row.uncounted else ""
    return (
        f"| {ledger} | {words} | {row.counted} | {row.jobs} | {row.kinds['lost']} | {row.kinds['twice']} | "
        f"{row.wasted} | {times} | {bound:.1f} s | {beyond} | {row.within:.1f} s | "
        f"{tally.verdict(ledger, number)}{unchecked} |"
    )


def _reds(tally: Tally) -> list[str]:
    lines = [f"- the program broke: {words}" for words in tally.broke]
    for (ledger, number), row in sorted(tally.rows.items()):
        for told in row.told[:SHOWN]:
            lines.append(f"- {ledger}, fault {number}: {told}")
        seeds = sorted({told.rpartition("(seed ")[2].rstrip(")") for told in row.told if "(seed " in told})
        if seeds and number:
            again = f"python -m tests.chaos --ledger {ledger} --seed {seeds[0]} --faults {number} --runs 1"
            lines.append(f"  again: `{again} --divisor {tally.divisor:g}`")
    return lines


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
