"""What people are told, and how often: pure, told the time."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.notices import MANY, MOST_SUBJECTS, SAYS, Kind, News, Place, Told, gathered, placed, text

NOW, QUIET_S = 1_000_000.0, 300.0


def news(subject: str = "gpu1/ollama", kind: str = Kind.PROVIDER_DOWN, at: float = NOW, times: int = 1) -> News:
    return News(kind, subject, {"code": "offline"}, times, at, at)


def test_the_first_goes_at_once_and_the_next_at_the_end_of_the_quiet_time() -> None:
    """A subject that was told of lately waits; what comes while it waits goes into the same notice."""
    assert placed([news()], [], NOW, QUIET_S) == [Place(news(), None, NOW)]
    lately = Told(1, Kind.PROVIDER_DOWN, "gpu1/ollama", NOW - 100, open=False, sent_at=NOW - 100)
    (again,) = placed([news(), news(at=NOW + 1)], [lately], NOW, QUIET_S)
    assert (again.into, again.due_at, again.news.times) == (None, NOW + 200, 2)
    waits = Told(2, Kind.PROVIDER_DOWN, "gpu1/ollama", NOW, open=True, sent_at=None)
    assert placed([news()], [lately, waits], NOW, QUIET_S)[0].into == 2


def test_what_is_being_sent_takes_nothing_more() -> None:
    """Its text is made already; the next digest is due when the quiet time after it is over."""
    leaves = Told(1, Kind.PROVIDER_DOWN, "gpu1/ollama", NOW, open=False, sent_at=None)
    assert placed([news()], [leaves], NOW, QUIET_S) == [Place(news(), None, NOW + QUIET_S)]


def test_many_subjects_of_one_kind_are_told_of_together() -> None:
    """The first few have notices of their own, thousands of others one that says how many."""
    places = placed([news(f"batch_{n}", Kind.BATCH_DONE) for n in range(5_000)], [], NOW, QUIET_S)
    assert [p.news.subject for p in places] == [*(f"batch_{n}" for n in range(MOST_SUBJECTS)), MANY]
    assert places[-1].news.times == 5_000 - MOST_SUBJECTS
    assert "4,995 more of batch done; the last: batch batch_4999 " in text(places[-1].news)


@given(st.lists(st.tuples(st.integers(0, 50), st.sampled_from([Kind.POISON, Kind.BACKLOG])), max_size=200))
def test_nothing_is_left_out_and_few_notices_are_made(happened: list[tuple[int, Kind]]) -> None:
    """However it comes: in the notices all of it is counted, and in a quiet time there are few of each kind."""
    there: list[Told] = []
    total: Counter[str] = Counter()
    made: Counter[str] = Counter()
    ids = count(1)
    for moment, (subject, kind) in enumerate(happened):
        now = NOW + moment
        for place in placed([news(str(subject), kind, now)], there, now, QUIET_S):
            total[kind] += place.news.times
            if place.into is None:
                made[kind] += 1
                sent_at = now if place.due_at <= now else None
                there.append(Told(next(ids), *place.news.topic, now, open=sent_at is None, sent_at=sent_at))
    assert total == Counter(kind for _, kind in happened)
    assert all(n <= 2 * (MOST_SUBJECTS + 1) for n in made.values()), "one and one digest for each of them, and many"


def test_a_digest_says_how_often_and_since_when() -> None:
    """In hours and minutes UTC, with the day where it is another one; and when it was last, for it may be late."""
    down = gathered([news(at=at) for at in (54_120.0, 54_300.0, 54_500.0)])[0]
    assert text(down) == ("Offload, 01-01 15:08 UTC: provider gpu1/ollama down (offline), 3 times since 15:02")
    assert "since 01-01 15:02" in text(gathered([news(at=54_120.0), news(at=54_120.0 + 86_400)])[0])
    assert text(news()) == "Offload, 01-12 13:46 UTC: provider gpu1/ollama down (offline)"
    assert text(News(Kind.TEST, "")) == "Offload: a test"


@pytest.mark.parametrize("kind", Kind)
def test_no_value_of_a_text_is_markup(kind: Kind) -> None:
    """A name cannot mention a channel, make a link or a second line, or be endless."""
    names = [part.partition("}")[0] for part in SAYS[kind][0].split("{")[1:]]
    evil = "<!channel> @here\n*x* `y`" + "z" * 1_000
    said = text(News(kind, evil, dict.fromkeys(names, evil)))
    assert not set(said) & set("<>@\n*`")
    assert len(said) < 600
