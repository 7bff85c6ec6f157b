"""A pool tells people what happens: every fact is made to happen, and what a real receiver was told is looked at."""

from __future__ import annotations

import stat
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.ledger import audits, notices, ticks
from tasks.ledger.events import tell
from tasks.notices import Kind, News
from tests.support.cli import jsonl
from tests.support.pool import TestPool, running, simulated
from tests.support.receiver import SECRET, Receiver, receiver
from tests.support.servers import Server
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow

WEBHOOK = "TEAM_WEBHOOK"
#: what no message may hold: a part of every prompt, of every answer, and of every line's id
PRIVATE = ("confidential", "made-up-answer", "line-of-mine")
JUDGE = '#!{python}\nimport sys\nsys.stdin.read()\nprint("{answer}")\n'
PROMPT = "Summarize this confidential note"


@pytest.fixture(scope="module")
def hook() -> Iterator[Receiver]:
    """Who is told."""
    with receiver() as made:
        yield made


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The model server at home."""
    made = Server(slots=64, loaded_limit=8, ttft_s=0.05)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, hook: Receiver, server: Server) -> Iterator[TestPool]:
    """Beat, a worker at home, and a program in the cloud's place with a small quota."""
    folder = tmp_path_factory.mktemp("notify")
    with running(folder, _config(folder, server.url)) as made:
        made.environment[WEBHOOK] = hook.url
        made.start("beat")
        made.start("worker", "--provider", "judge", "--node", "here")
        made.worker()
        eventually(lambda: ticks.last_tick(made.db, "notify"), "beat looks", 60)
        yield made
    log = (folder / "roles.log").read_text()
    assert not [word for word in (*SECRET.split("/"), *PRIVATE) if word in log]


def _config(folder: Path, url: str) -> dict[str, Any]:
    program = folder / "judge.py"
    program.write_text(JUDGE.format(python=sys.executable, answer=PRIVATE[1]))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    config = simulated(url)
    quota = [{"unit": "requests", "per": "day", "most": 5}]
    config["providers"].append({"name": "judge", "kind": "command", "command": [str(program)], "limits": quota})
    config["classes"]["cloud"] = {"serve": [{"provider": "judge", "model": "judge-1"}]}
    config["categories"] = {
        "summarize": {"on_failure": "escalate", "attempts": 1, "audit": 0},
        "audited": {"class": "small", "audit": 1.0},
    }
    config["notify"] = {"webhook_env": WEBHOOK, "backlog_s": 1, "quiet_s": 2}
    return config


def jobs(n: int, words: str = "", **fields: Any) -> list[dict[str, Any]]:
    line = {"category": "summarize", "prompt": f"{words} {PROMPT}"} | fields
    return [line | {"id": f"{PRIVATE[2]}-{i}"} for i in range(n)]


def told(hook: Receiver, *words: str) -> str:
    """What it was told with these words in it, when it is."""
    return eventually(lambda: hook.told(*words), f"{words} is told", 30) or ""


def test_a_batch_that_asked_is_told_of(pool: TestPool, hook: Receiver) -> None:
    """With --notify, and with its counts; one that did not ask ends in silence."""
    quiet = pool.submit(jobs(1))
    pool.finished(quiet)
    ran = pool.cli("submit", "-", "--notify", stdin=jsonl(jobs(3)))
    assert ran.code == 0, ran.stderr
    assert "finished: 3 of 3 jobs done" in told(hook, ran.text, "finished")
    assert hook.told(quiet, "finished") is None


def test_a_fallback_and_a_quota_are_told(pool: TestPool, hook: Receiver) -> None:
    """What failed at home is the cloud's, says why, and uses up its quota step by step."""
    failing = {"words": "[[sim:empty]]", "privacy": "cloud_ok"}
    pool.finished(pool.submit(jobs(4, **failing)))
    assert "used class cloud because class small failed (empty_output)" in told(hook, "used class cloud")
    assert "80 % of 5 requests a day" in told(hook, "quota of judge")
    pool.finished(pool.submit(jobs(1, **failing)))
    assert "all 5 requests a day are used" in told(hook, "quota of judge", "all")


def test_an_alarm_of_the_audit_is_told(pool: TestPool, hook: Receiver) -> None:
    """People who disagree with a kind of job again and again raise it."""
    batch = pool.submit(jobs(6, category="audited", privacy="local_only"))
    waiting = eventually(lambda: _all_asked(pool, batch), "people are asked")
    for row in waiting:
        assert pool.cli("audit", "label", str(row.id), "disagree").code == 0
    assert "audited on gemma3:4b" in told(hook, "audit alarm")


def _all_asked(pool: TestPool, batch: str) -> list[Any]:
    rows = audits.listed(pool.db, batch_id=batch, state="person")
    return rows if len(rows) == 6 else []


def test_a_provider_that_is_away_and_its_backlog_are_told(pool: TestPool, hook: Receiver, server: Server) -> None:
    """Down when its worker finds it so, then what waits for it, then up again."""
    eventually(lambda: not ticks.counted(pool.db, "notify")[1]["backlog"], "nothing waits, on a busy machine either")
    server.stop()
    waits = pool.submit(jobs(2))
    told(hook, "provider here/sim down (offline)")
    told(hook, f"class small: jobs wait for more than 1 s, the oldest in {waits}")
    server.start()
    told(hook, "provider here/sim up again")
    pool.finished(waits)


def test_a_receiver_that_hangs_delays_nothing(pool: TestPool, hook: Receiver) -> None:
    """While it holds a notice jobs end and sweeps go on; later it is told."""
    batch, swept = pool.submit(jobs(2_000)), set[float]()
    eventually(lambda: pool.batch(batch).done, "jobs run")
    hook.holds.clear()
    try:
        with pool.db.write() as c:
            tell(c, pool.db.now(c), News(Kind.BROKER, "redis"))
        eventually(lambda: hook.holding, "it holds one")
        done = pool.batch(batch).done

        def went_on() -> bool:
            swept.add(ticks.ticked_at(pool.db, "sweep") or 0.0)
            return pool.batch(batch).done > done and len(swept) > 2

        eventually(lambda: went_on() or not hook.holding, "work goes on")
        assert went_on(), "it went on while it was held"
    finally:
        hook.holds.set()
    assert pool.cli("cancel", batch).code == 0
    eventually(lambda: {n.state for n in notices.listed(pool.db, 100)} == {"sent"}, "it is told", 60)


def test_nothing_private_is_told(pool: TestPool, hook: Receiver) -> None:
    """Of all that was told above no text holds a prompt, an answer or a line's id, and none came twice."""
    said = str(hook.got)
    assert not [word for word in PRIVATE if word in said]
    listed = eventually(lambda: _all_sent(pool), "what is told is taken")
    assert {row["kind"] for row in listed} >= {
        "batch_done", "fallback", "quota_80", "quota_100", "audit_alarm", "provider_down", "provider_up", "backlog",
    }  # fmt: skip
    once = Counter(row["id"] for row in listed if row["tries"] == 1)
    assert len(hook.got) >= len(once)
    assert "provider here/sim up again" in pool.cli("notify", "list").text


def _all_sent(pool: TestPool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pool.cli("notify", "list", "--limit", "100", "--json").json
    return rows if {row["state"] for row in rows} == {"sent"} else []


def test_doctor_and_test_say_how_receivers_are(pool: TestPool, hook: Receiver) -> None:
    """Where the variable is not set here beat's word counts; one that answers wrongly is broken, with its answer."""
    assert pool.cli("notify", "test").text == f"ok      {WEBHOOK} at 127.0.0.1: HTTP 200 (ok)"
    assert "Offload: a test" in hook.texts
    found = [f for f in pool.cli("doctor", "--json").json if f["check"] == f"notify {WEBHOOK}"]
    assert [f["ok"] for f in found] == [True]
    del pool.environment[WEBHOOK]
    assert [f["ok"] for f in pool.cli("doctor", "--json").json if f["check"] == f"notify {WEBHOOK}"] == [True]
    ran = pool.cli("notify", "test", "--json")
    assert (ran.code, [(row["ok"], row["answer"]) for row in ran.json]) == (1, [(False, f"{WEBHOOK} is not set")])
    pool.environment[WEBHOOK] = hook.url
    hook.status, hook.says = 403, b"invalid_token"
    ran = pool.cli("notify", "test")
    assert (ran.code, ran.text) == (1, f"FAILED  {WEBHOOK} at 127.0.0.1: HTTP 403 (invalid_token)")
    with pool.db.write() as c:
        tell(c, pool.db.now(c), News(Kind.BROKER, "redis"))  # no job waits for it, so that this is all there is to tell
    eventually(lambda: notices.troubles(pool.db), "beat is refused")
    (finding,) = [f for f in pool.cli("doctor", "--json").json if f["check"] == f"notify {WEBHOOK}"]
    assert (finding["ok"], finding["detail"], finding["fix"]) == (
        False, "1 notice not taken: HTTP 403", "offload notify test",
    )  # fmt: skip


def test_nobody_is_told_where_nobody_is_named(pool: TestPool) -> None:
    """It is said where the name belongs."""
    file = pool.home / "offload.yaml"
    config = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(config | {"notify": {"apprise_env": ["NOT_SET"]}}))
    (finding,) = [f for f in pool.cli("doctor", "--json").json if f["check"].startswith("notify")]
    assert (finding["ok"], finding["detail"]) == (False, "NOT_SET is not set")
    file.write_text(yaml.safe_dump({name: part for name, part in config.items() if name != "notify"}))
    ran = pool.cli("notify", "test")
    assert (ran.code, "notify.webhook_env" in ran.stderr) == (2, True)
    assert not [f for f in pool.cli("doctor", "--json").json if f["check"].startswith("notify")]
