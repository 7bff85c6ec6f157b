"""The outbox: every fact becomes news in its own commit, and every notice is sent by whoever holds its lease."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from scheduler.notify import send_due
from scheduler.receivers import Webhook
from tasks.auditing import Opinion
from tasks.ledger import audits, control, endings, notices, sweeping
from tasks.ledger.database import Database
from tasks.ledger.events import tell
from tasks.ledger.notices import GIVE_UP_S, KEPT_S, LEASE_S, RETRY_FIRST_S, RETRY_MOST_S
from tasks.ledger.sweeping import POISON_CRASHES
from tasks.notices import Kind, News
from tasks.privacy import Tier
from tasks.routing import Route
from tasks.states import JobState
from tasks.tables import Event, Notice
from tests.support.at_once import at_once
from tests.support.receiver import Receiver, receiver
from tests.support.waiting import eventually
from tests.unit.ledgers import REGISTRY, TIMES, Ledger, call_row, outcome

WEBHOOK = "SLACK"
QUIET_S = 300.0
#: sends what is due to a webhook, from a ledger whose clock is the test's
SENDS = """
import sys
from scheduler.notify import send_due
from scheduler.receivers import Webhook
from tasks.ledger.database import Database
class Clocked(Database):
    def now(self, connection):
        return float(sys.argv[3])
send_due(Clocked(sys.argv[1]), Webhook("SLACK", {"SLACK": sys.argv[2]}))
"""


@pytest.fixture
def hook() -> Iterator[Receiver]:
    """Who is told."""
    with receiver() as made:
        yield made


def place(db: Database) -> str:
    return db.engine.url.render_as_string(hide_password=False)


def happens(ledger: Ledger, *subjects: str, kind: str = Kind.BACKLOG) -> None:
    """Something happens to each subject, and notices are made of it."""
    with ledger.db.write() as c:
        tell(c, ledger.db.now(c), *(News(kind, s, {"batch": "b", "bound": "600"}) for s in subjects))
    notices.make(ledger.db, [WEBHOOK], QUIET_S)


def send(ledger: Ledger, hook: Receiver) -> dict[str, int]:
    return dict(send_due(ledger.db, Webhook(WEBHOOK, {WEBHOOK: hook.url})))


def news(ledger: Ledger) -> list[tuple[str, str, int]]:
    return [(row.kind, row.subject, row.times) for row in ledger.all(Event)]


# --- facts -----------------------------------------------------------------------------------------------


def test_a_poison_job_is_told_in_the_commit_that_fails_it(ledger: Ledger) -> None:
    """By its number and batch; what it asks and its line id are nobody's business."""
    batch_id, me, (job,) = ledger.running(1)
    for _ in range(POISON_CRASHES):
        ledger.wait(TIMES.lease + 1)
        sweeping.take_back_expired(ledger.db, REGISTRY)
        ledger.beat(me)
        ledger.fill()
        ledger.claim(me)
    (row,) = ledger.all(Event)
    assert (row.kind, row.subject, row.detail) == ("poison", "small", {"job": job.id, "batch": batch_id})


def test_the_end_of_a_batch_is_told_to_those_who_asked(ledger: Ledger) -> None:
    """Once, with its counts, in the commit that ends it; others end in silence, a retry as what it retries."""
    _, _, held = ledger.running(2)
    asked, _, (one, two) = ledger.running(2, notify=True)
    ledger.record(*map(outcome, held), outcome(one))
    assert news(ledger) == []
    ledger.record(outcome(two, JobState.FAILED, error_code="stalled"))
    (row,) = ledger.all(Event)
    assert (row.subject, row.detail) == (asked, {"state": "finished", "done": 1, "total": 2})
    endings.cancel(ledger.db, control.retry(ledger.db, asked))
    again = ledger.all(Event)[-1]
    assert (again.subject != asked, again.detail) == (True, {"state": "cancelled", "done": 0, "total": 1})


def test_a_fallback_to_the_cloud_is_told(ledger: Ledger) -> None:
    """Jobs that failed their checks at home, and what waited for a dead class, each group with its count and why."""
    batch_id, _, held = ledger.running(2, job={"route": Route("small", Tier.CLOUD_OK)})
    why = {"escalation": "its answers failed", "error_code": "bad_json"}
    ledger.record(*(outcome(job, JobState.QUEUED, attempts=1, **why) for job in held))
    ledger.submit(3, model_class="coder", job={"route": Route("coder", Tier.CLOUD_OK)})
    sweeping.escalate_class(ledger.db, "coder", ["summarize"])
    first, second = ledger.all(Event)
    assert (first.times, first.detail) == (2, {"failed": "class small", "used": "class cloud", "why": "bad_json"})
    assert (second.times, second.detail) == (3, {"failed": "class coder", "used": "class cloud", "why": "unserved"})
    assert batch_id not in str(first.detail)


@pytest.mark.parametrize(
    ("code", "by", "is_told"),
    [("stalled", "other", True), ("worker_died", "other", True), ("stalled", "gpu", False), ("busy", "other", False)],
)
def test_an_answer_by_another_than_who_failed_is_told(ledger: Ledger, code: str, by: str, is_told: bool) -> None:
    """A server that was only busy did not fail, and a second try by the same one is no fallback."""
    _, me, (job,) = ledger.running(1)
    failed = call_row(job) | {"error_code": code}
    ledger.record(outcome(job, JobState.QUEUED, attempts=1, call=failed, error_code=code))
    ledger.fill()
    (again,) = ledger.claim(me)
    ledger.record(outcome(again, call=call_row(again) | {"provider": by}))
    told = [("fallback", f"node/gpu to node/{by}", 1)]
    assert news(ledger) == (told if is_told else [])


def test_an_alarm_of_the_audit_is_told(ledger: Ledger) -> None:
    """In the commit of the opinion that raises it."""
    first = {"template": "t", "audit": 1.0}
    _, _, held = ledger.running(6, job=first)
    ledger.record(*map(outcome, held))
    audits.choose(ledger.db)
    for row in audits.listed(ledger.db):
        audits.judge(ledger.db, row.id, Opinion.DISAGREE, "so", "person")
    (alarm,) = ledger.all(Event)
    assert (alarm.kind, alarm.detail["category"], alarm.noticed) == ("audit_alarm", "summarize", False)
    assert [a.subject for a in audits.alarms(ledger.db)] == [alarm.subject]


def test_a_fact_that_was_rolled_back_is_not_told(ledger: Ledger) -> None:
    """The event is part of its transaction."""
    with ledger.db.write() as c:
        tell(c, 1.0, News(Kind.POISON, "small"))
        c.rollback()
    assert news(ledger) == []


# --- notices ---------------------------------------------------------------------------------------------


def test_a_flapping_subject_is_one_message_and_one_digest_a_quiet_time(ledger: Ledger, hook: Receiver) -> None:
    """The first at once, all others of that time in one that says how many and since when."""
    for _ in range(30):
        happens(ledger, "small")
        send(ledger, hook)
        ledger.wait(10)
    send(ledger, hook)
    assert len(hook.got) == 2
    assert "29 times since" in hook.texts[1]
    ledger.wait(QUIET_S + 1)
    happens(ledger, "small")
    assert send(ledger, hook) == {"delivered": 1}
    assert "times" not in hook.texts[2]


def test_thousands_of_poison_jobs_are_one_message(ledger: Ledger, hook: Receiver) -> None:
    """With their count."""
    with ledger.db.write() as c:
        tell(c, ledger.db.now(c), *[News(Kind.POISON, "small", {"job": n, "batch": "b"}) for n in range(2_500)])
    assert notices.make(ledger.db, [WEBHOOK], QUIET_S) == 2_500
    send(ledger, hook)
    (said,) = hook.texts
    assert said.endswith(" UTC: poison in class small: job 2499 of b ended its worker too often, 2,500 jobs")


def test_each_receiver_has_its_own(ledger: Ledger, hook: Receiver) -> None:
    """One that takes nothing keeps nothing from the other."""
    happens(ledger, "nobody")
    notices.make(ledger.db, [], QUIET_S)
    with ledger.db.write() as c:
        tell(c, ledger.db.now(c), News(Kind.BROKER, "redis"))
    notices.make(ledger.db, ["DEAD", WEBHOOK], QUIET_S)
    assert send_due(ledger.db, Webhook("DEAD", {})) == {"put_off": 1}
    assert send(ledger, hook) == {"delivered": 2}
    assert {row.receiver: row.state for row in ledger.all(Notice, kind="broker")} == {
        "DEAD": "waiting",
        WEBHOOK: "sent",
    }
    assert notices.troubles(ledger.db) == {"DEAD": (1, "DEAD is not set")}


def test_without_a_receiver_nothing_is_kept_for_later(ledger: Ledger, hook: Receiver) -> None:
    """Who is named tomorrow is not told what happened today."""
    with ledger.db.write() as c:
        tell(c, ledger.db.now(c), News(Kind.BROKER, "redis"))
    assert notices.make(ledger.db, [], QUIET_S) == 1
    assert notices.make(ledger.db, [WEBHOOK], QUIET_S) == 0
    assert send(ledger, hook) == {}


def test_a_receiver_that_refuses_is_asked_again_ever_later_and_given_up_after_a_day(
    ledger: Ledger, hook: Receiver
) -> None:
    """All that happens meanwhile goes into the same notice; what was given up stays to be seen, for a time."""
    hook.status = 500
    happens(ledger, "small")
    waits = []
    for n in range(14):
        assert send(ledger, hook) == {"put_off": 1}
        assert send(ledger, hook) == {}, "not yet"
        (row,) = ledger.all(Notice)
        waits.append(row.due_at - ledger.db.time)
        ledger.wait(waits[-1])
        if n < 3:
            happens(ledger, "small")
    assert waits[:3] == [RETRY_FIRST_S, 2 * RETRY_FIRST_S, 4 * RETRY_FIRST_S]
    assert waits[-1] == RETRY_MOST_S
    assert (row.times, row.answer, len(hook.got)) == (4, "HTTP 500", 14)
    assert notices.give_up(ledger.db) == 0
    ledger.wait(GIVE_UP_S)
    assert notices.give_up(ledger.db) == 1
    assert send(ledger, hook) == {}
    assert notices.troubles(ledger.db) == {WEBHOOK: (1, "HTTP 500")}
    ledger.wait(KEPT_S)
    assert notices.prune(ledger.db) == 1 + 4
    assert notices.listed(ledger.db, 10) == []


def test_old_news_goes_in_slices(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """No transaction deletes more than CHUNK rows, none that is young, waits, or is an alarm of the audit's goes."""
    monkeypatch.setattr(notices, "CHUNK", 10)
    happens(ledger, *(f"alarm {n}" for n in range(12)), kind=Kind.AUDIT_ALARM)
    happens(ledger, *(f"old {n}" for n in range(35)))
    ledger.wait(KEPT_S + 1)
    happens(ledger, "young")
    went: list[int] = []
    delete = notices._delete

    def deletes(*args: Any) -> int:
        went.append(delete(*args))
        return went[-1]

    monkeypatch.setattr(notices, "_delete", deletes)
    assert notices.prune(ledger.db) == sum(went) == 35
    assert max(went) <= 10
    assert [row.kind for row in ledger.all(Event)] == ["audit_alarm"] * 12 + ["backlog"]
    assert {row.state for row in ledger.all(Notice)} == {"waiting"}
    assert notices.prune(ledger.db) == 0


def test_a_dead_receiver_is_asked_once_however_much_waits_for_it(ledger: Ledger, hook: Receiver) -> None:
    """Nothing for it is due before the one that it did not take is again; then those go first that were not tried."""
    hook.status = 503
    happens(ledger, *"abc")
    for n in range(1, 4):
        assert send(ledger, hook) == {"put_off": 1}
        ledger.wait(RETRY_FIRST_S - 1)
        assert send(ledger, hook) == {}
        ledger.wait(1)
        assert len({text[:50] for text in hook.texts}) == len(hook.got) == n
    hook.status = 200
    assert send(ledger, hook) == {"delivered": 3}


def test_a_text_that_is_refused_stands_in_nobodys_way(ledger: Ledger, hook: Receiver) -> None:
    """What was tried less often goes first."""
    hook.status = 400
    happens(ledger, "refused")
    assert send(ledger, hook) == {"put_off": 1}
    ledger.wait(RETRY_FIRST_S)
    happens(ledger, "fine")
    (notice,) = [n for n in (notices.claim(ledger.db, WEBHOOK),) if n is not None]
    assert notice.subject == "fine"


def test_two_senders_send_each_notice_once(ledger: Ledger, hook: Receiver) -> None:
    """Each is leased to one of them."""
    happens(ledger, *"abcde")
    happens(ledger, *"abcde", kind=Kind.PROVIDER_UP)
    notices.make(ledger.db, [WEBHOOK], QUIET_S)
    at_once(lambda: send(ledger, hook), lambda: send(ledger, hook), lambda: notices.make(ledger.db, [WEBHOOK], 1.0))
    assert len(hook.got) == len(set(hook.texts)) == 10
    assert {(row.state, row.tries) for row in ledger.all(Notice)} == {("sent", 1)}


@pytest.mark.slow
def test_a_notice_whose_sender_was_killed_is_sent_again(ledger: Ledger, hook: Receiver) -> None:
    """kill -9 between send and mark: nobody else sends it while the lease is held, then somebody does."""
    happens(ledger, "small")
    hook.holds.clear()
    arguments = [place(ledger.db), hook.url, str(ledger.db.time)]
    with subprocess.Popen([sys.executable, "-c", SENDS, *arguments]) as other:
        eventually(lambda: hook.holding, "the receiver has it")
        other.kill()
    hook.holds.set()
    assert send(ledger, hook) == {}
    ledger.wait(LEASE_S)
    assert send(ledger, hook) == {"delivered": 1}
    assert hook.texts == [hook.texts[0]] * 2
    (row,) = ledger.all(Notice)
    assert (row.state, row.tries) == ("sent", 2)


def test_only_news_is_looked_at(ledger: Ledger) -> None:
    """An index leads to it, however many events there were."""
    for _ in range(2):
        happens(ledger, "small")
    plan: Any = "EXPLAIN QUERY PLAN " if not ledger.db.is_postgres else "EXPLAIN "
    with ledger.db.read() as c:
        if ledger.db.is_postgres:
            c.execute(text("SET LOCAL enable_seqscan = off"))
        said = str(c.execute(text(f"{plan} SELECT * FROM events WHERE NOT events.noticed ORDER BY id LIMIT 10")).all())
    assert "ix_events_news" in said
