"""How well the detectors agree with careful people, and how fast they read.

    python -m tests.bench.detectors [--misses]

The labels in tests/data/privacy_labelled.jsonl say what a careful person would; some texts are beyond the
detectors, and their notes say so.  The marker `{{+}}` splits invented tokens, so that no scanner of sources
takes them for real ones; it is removed here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from tasks.detectors import TIER_OF, detect

LABELLED = Path(__file__).parent.parent / "data" / "privacy_labelled.jsonl"
_PROSE = (
    "The harbour was quiet when the boats came in, {0} of them, one after the other. Mrs. Lindqvist counted the\n"
    "crates aloud; her son wrote the figures down, 14 and then 9, and nobody spoke of the storm.  By half past\n"
    "seven the market on the quay had opened, and the first customers asked (as they did each morning) what the\n"
    "night had brought, what it would cost, and whether the old man's promise of 1987 still held.\n\n"
)
_CODE = (
    "def balance_{0}(entries: list[Entry], *, until: date | None = None) -> Decimal:\n"
    '    """The sum of all entries up to a day."""\n'
    "    total = Decimal(0)\n"
    "    for entry in entries:\n"
    "        if until is None or entry.day <= until:\n"
    "            total += entry.amount * (-1 if entry.kind == 'debit' else 1)\n"
    "    return total.quantize(Decimal('0.01'), rounding=self.rounding[{0}])\n\n"
)


@dataclass(frozen=True)
class Labelled:
    """A text and what a careful person finds in it."""

    text: str
    detectors: frozenset[str]
    note: str


@dataclass(frozen=True)
class Figures:
    """A detector's account over the labelled texts."""

    positives: int
    found: int
    false_alarms: int

    @property
    def recall(self) -> float:
        """Of the texts with something to find, the share found."""
        return self.found / max(1, self.positives)

    @property
    def precision(self) -> float:
        """Of the texts in which it found something, the share that had it."""
        return self.found / max(1, self.found + self.false_alarms)


def labelled() -> list[Labelled]:
    """The labelled texts, whole again."""
    lines = map(json.loads, LABELLED.read_bytes().splitlines())
    return [Labelled(line["text"].replace("{{+}}", ""), frozenset(line["detectors"]), line["note"]) for line in lines]


def figures(entries: Sequence[Labelled]) -> dict[str, Figures]:
    """Each detector's figures."""
    pairs = [(entry.detectors, set(detect(entry.text))) for entry in entries]
    return {
        name: Figures(
            positives=sum(name in truth for truth, _ in pairs),
            found=sum(name in truth and name in found for truth, found in pairs),
            false_alarms=sum(name not in truth and name in found for truth, found in pairs),
        )
        for name in TIER_OF
    }


@click.command()
@click.option("--misses", is_flag=True, help="Also list the notes of texts judged otherwise than their label.")
def main(misses: bool) -> None:
    """Print a table of quality, then the throughput."""
    entries = labelled()
    click.echo(f"{'detector':<16}{'positives':>10}{'found':>7}{'false alarms':>14}{'precision':>11}{'recall':>8}")
    for name, row in figures(entries).items():
        counts = f"{row.positives:>10}{row.found:>7}{row.false_alarms:>14}"
        click.echo(f"{name:<16}{counts}{row.precision:>11.3f}{row.recall:>8.3f}")
    if misses:
        _list_misses(entries)
    _print_speed([entry.text for entry in entries])


def _list_misses(entries: Sequence[Labelled]) -> None:
    for entry in entries:
        found = set(detect(entry.text))
        for sign, names in (("missed", entry.detectors - found), ("false alarm", found - entry.detectors)):
            if names:
                click.echo(f"  {sign}: {', '.join(sorted(names))} ({entry.note})")


def _print_speed(texts: list[str]) -> None:
    """Prose and code come in texts of about 4 kB, as jobs do."""
    samples = {
        "the labelled texts": texts,
        "plain prose": ["".join(_PROSE.format(i + j) for j in range(10)) for i in range(500)],
        "plain code": ["".join(_CODE.format(i + j) for j in range(10)) for i in range(500)],
    }
    for what, sample in samples.items():
        click.echo(f"{what}: {_megabytes_a_second(sample):.0f} MB/s")


def _megabytes_a_second(texts: Sequence[str]) -> float:
    """The best of five readings, in 10**6 bytes of UTF-8 a second."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for text in texts:
            detect(text)
        times.append(time.perf_counter() - start)
    return sum(len(text.encode()) for text in texts) / min(times) / 1e6


if __name__ == "__main__":
    main()
