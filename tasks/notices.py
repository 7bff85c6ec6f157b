"""What people are told, and how often.  Pure; told the time.

    fact ──► event ──► notice ──► a receiver
             a row      what happened to one subject, for one receiver

A fact writes an event in the commit that makes it true.  What happened to one subject goes to a receiver at once, and
what happens to it again within the quiet time in one more notice at the end of it, which says how often.  Of a kind
that meets many subjects only the first few have notices of their own.

Texts are made of our own words, ids, configured names, counts and codes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

#: subjects of one kind that are told of one by one within the quiet time; the others are told of together
MOST_SUBJECTS = 5
#: the subject of those
MANY = "*"
#: characters of a value that a text shows
MOST_SHOWN = 80


class Kind(StrEnum):
    """What there is to tell."""

    FALLBACK = "fallback"
    PROVIDER_DOWN = "provider_down"
    PROVIDER_UP = "provider_up"
    AUDIT_ALARM = "audit_alarm"
    QUOTA_80 = "quota_80"
    QUOTA_100 = "quota_100"
    POISON = "poison"
    BATCH_DONE = "batch_done"
    BACKLOG = "backlog"
    BROKER = "broker"
    BROKER_UP = "broker_up"
    TEST = "test"


#: kind -> what is said of one of its subjects, with the names of its detail, and what is counted
SAYS: dict[Kind, tuple[str, str]] = {
    Kind.FALLBACK: ("used {used} because {failed} failed ({why})", "jobs"),
    Kind.PROVIDER_DOWN: ("provider {subject} down ({code})", "times"),
    Kind.PROVIDER_UP: ("provider {subject} up again", "times"),
    Kind.AUDIT_ALARM: ("audit alarm: {category} on {model} is agreed with too seldom, in {audits} audits", "times"),
    Kind.QUOTA_80: ("quota of {subject}: 80 % of {most} are used", "times"),
    Kind.QUOTA_100: ("quota of {subject}: all {most} are used, its jobs wait", "times"),
    Kind.POISON: ("poison in class {subject}: job {job} of {batch} ended its worker too often", "jobs"),
    Kind.BATCH_DONE: ("batch {subject} {state}: {done} of {total} jobs done", "batches"),
    Kind.BACKLOG: ("class {subject}: jobs wait for more than {bound} s, the oldest in {batch}", "times"),
    Kind.BROKER: ("Redis takes no messages; jobs wait in the ledger", "times"),
    Kind.BROKER_UP: ("Redis takes messages again", "times"),
    Kind.TEST: ("a test", "times"),
}


@dataclass(frozen=True)
class News:
    """What happened to one subject. times: how often. first_at, last_at: unix seconds. detail: of the last time."""

    kind: str
    subject: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    times: int = 1
    first_at: float = 0.0
    last_at: float = 0.0

    @property
    def topic(self) -> tuple[str, str]:
        """What makes two of them the same."""
        return self.kind, self.subject

    def with_later(self, other: News) -> News:
        """Both in one."""
        return replace(other, times=self.times + other.times, first_at=min(self.first_at, other.first_at))

    def among_many(self) -> News:
        """The same as one of those that are told of together."""
        return replace(self, subject=MANY, detail={**self.detail, "subject": self.subject})


@dataclass(frozen=True)
class Told:
    """A notice of one receiver that waits, or was sent within the quiet time.

    open: it waits and nobody sends it now, so that more can go into it. sent_at: unix seconds, None while it waits.
    """

    id: int
    kind: str
    subject: str
    made_at: float
    open: bool
    sent_at: float | None


@dataclass(frozen=True)
class Place:
    """Where news go: into the notice `into`, or, where that is None, into a new one that is due at `due_at`."""

    news: News
    into: int | None
    due_at: float


def gathered(news: Sequence[News]) -> list[News]:
    """One for each topic, in the order in which they came up."""
    found: dict[tuple[str, str], News] = {}
    for one in news:
        found[one.topic] = found[one.topic].with_later(one) if one.topic in found else one
    return list(found.values())


def placed(news: Sequence[News], told: Sequence[Told], now: float, quiet_s: float) -> list[Place]:
    """Where each goes, given what one receiver was told or is about to be."""
    return [_place(one, told, now, quiet_s) for one in gathered(_addressed(gathered(news), told, now, quiet_s))]


def _addressed(news: Sequence[News], told: Sequence[Told], now: float, quiet_s: float) -> list[News]:
    """Each under its own subject, or among many where its kind has met too many already."""
    known = {(t.kind, t.subject) for t in told}
    lately = Counter(t.kind for t in told if t.made_at > now - quiet_s)
    found = []
    for one in news:
        if one.topic not in known:
            lately[one.kind] += 1
            if lately[one.kind] > MOST_SUBJECTS:
                one = one.among_many()
        found.append(one)
    return found


def _place(one: News, told: Sequence[Told], now: float, quiet_s: float) -> Place:
    mine = [t for t in told if (t.kind, t.subject) == one.topic]
    into = next((t.id for t in reversed(mine) if t.open), None)
    quiet_until = [(now if t.sent_at is None else t.sent_at) + quiet_s for t in mine]
    return Place(one, into, max([now, *quiet_until]))


def text(news: News) -> str:
    """What a receiver is told: when it was, for it may be late, and what."""
    says, counted = SAYS[Kind(news.kind)]
    words = says.format_map(_Shown({"subject": news.subject} | dict(news.detail)))
    if news.subject == MANY:
        words = f"{news.times:,} more of {news.kind.replace('_', ' ')}{_since(news)}; the last: {words}"
    elif news.times > 1:
        words = f"{words}, {news.times:,} {counted}{_since(news)}"
    when = f", {_utc(news.last_at):%m-%d %H:%M} UTC" if news.last_at else ""
    return f"Offload{when}: {words}"


class _Shown(dict[str, Any]):
    """A detail's values as a text shows them: short, on one line, without what a chat reads as markup or a mention."""

    def __getitem__(self, key: str) -> str:
        said = str(self.get(key, "?"))
        return "".join(c if c.isprintable() and c not in "<>&@*`|" else " " for c in said)[:MOST_SHOWN]


def _since(news: News) -> str:
    if news.last_at - news.first_at < 1:
        return ""
    first, last = _utc(news.first_at), _utc(news.last_at)
    return f" since {first:{'%H:%M' if first.date() == last.date() else '%m-%d %H:%M'}}"


def _utc(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
