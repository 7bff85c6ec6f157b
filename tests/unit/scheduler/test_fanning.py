"""A fan-out goes on by itself, once, whoever looks; what is private stays so, and what is missing is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy.engine import Row

from api.use_cases import fan_views, fanning
from api.use_cases.fanning import Asked, FanOut
from api.use_cases.pool import Pool
from scheduler.fanning import advance, run_once
from tasks.config import parse
from tasks.errors import Conflict, InputError, NotFound, UsageError
from tasks.fanning import Agent, Item
from tasks.ledger import control, endings, fan_outs, submit, sweeping
from tasks.ledger.fan_outs import Stage
from tasks.ledger.record import Outcome
from tasks.privacy import Tier
from tasks.routing import Consent, Said
from tasks.settings import Settings
from tasks.states import JobState
from tasks.tables import Batch, Body
from tasks.tables import FanOut as FanOutRow
from tests.support.at_once import at_once
from tests.unit.databases import ClockedDatabase
from tests.unit.ledgers import Ledger, outcome

CONFIG = """
providers: [{name: sim, kind: ollama, url: http://127.0.0.1:1, reach: local}]
classes:
  small: {serve: [{provider: sim, model: m}], options: {num_ctx: 2048}}
categories:
  notes: {class: small, max_tokens: 200}
  sorts: {class: small, check: label}
privacy: {default: cloud_ok, roots: {private: local_only}, markers: {}}
"""
REGISTRY = parse(CONFIG, "test")


@pytest.fixture(params=["sqlite_db", "postgres_db"])
def ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """A ledger in each database."""
    db: ClockedDatabase = request.getfixturevalue(request.param)
    made = Ledger(db)
    yield made
    made.check()


@pytest.fixture
def pool(ledger: Ledger, tmp_path: Path) -> Pool:
    """The pool's use-cases over that ledger."""
    made = Pool(Settings(home=tmp_path))
    made.__dict__ |= {"db": ledger.db, "registry": REGISTRY}
    return made


def items(*names: str, size: int = 40, folder: str = "src") -> list[tuple[Item, int]]:
    """Files."""
    return [
        (Item(name, {"path": f"{folder}/{name}", "content": "word " * (size // 5)}, (f"{folder}/{name}",)), 0)
        for name in names
    ]


def started(pool: Pool, merge: str, given: list[tuple[Item, int]], category: str = "notes", **more: Any) -> str:
    """A fan-out; its id."""
    wanted = FanOut(
        asked=[Asked("Explain {path}:\n{content}", category)],
        items=given,
        placeholders=["path", "content"],
        merge=merge,
        merge_category=more.pop("merge_category", "notes"),
        **more,
    )
    return fanning.start(pool, wanted).fan_out_id


def answer(ledger: Ledger, pool: Pool, *answers: Any, state: JobState = JobState.DONE) -> Row[Any]:
    """End the open jobs of the newest fan-out's step, the last answer repeated; None: it fails. Its row afterwards."""
    (row,) = ledger.all(FanOutRow)
    open_jobs = [j for j in ledger.jobs(row.step_batch_id) if j.state == JobState.QUEUED]
    me = ledger.worker(capacity=max(1, len(open_jobs)))
    ledger.fill()
    claimed = sorted(ledger.claim(me), key=lambda job: job.id)
    assert len(claimed) == len(open_jobs)
    outcomes: list[Outcome] = []
    for i, job in enumerate(claimed):
        said = answers[min(i, len(answers) - 1)]
        if said is None:
            outcomes.append(outcome(job, JobState.FAILED, error_code="boom", error_message="it broke"))
        else:
            outcomes.append(outcome(job, output=orjson.dumps(said)))
    ledger.record(*outcomes)
    run_once(pool.db, pool.registry)
    (row,) = ledger.all(FanOutRow)
    return row


def prompts(ledger: Ledger, batch_id: str) -> list[str]:
    """What a batch's jobs ask."""
    found = {row.job_id: orjson.loads(row.body) for row in ledger.all(Body)}
    return [found[job.id]["prompt"] for job in ledger.jobs(batch_id)]


def result(pool: Pool, row: Row[Any]) -> str:
    """The result."""
    return b"".join(fan_views.result(pool, row)).decode()


def test_a_prompt_merges(ledger: Ledger, pool: Pool) -> None:
    """One merge of all answers, under their names; its answer is the result."""
    started(pool, "Merge:\n{results}", items("a.py", "b.py"))
    row = answer(ledger, pool, "It is a.", "It is b.")
    assert (row.state, row.step) == (Stage.RUNNING, 1)
    assert prompts(ledger, row.step_batch_id) == ["Merge:\n### a.py\nIt is a.\n\n### b.py\nIt is b."]
    assert ledger.batch(row.step_batch_id).kind == "merge"
    row = answer(ledger, pool, "It is all.")
    assert (row.state, result(pool, row)) == (Stage.DONE, "It is all.")
    assert fan_views.tree(pool, row) == [
        {
            "name": "a.py … b.py",
            "what": "merge",
            "state": "done",
            "parts": [{"name": name, "what": "input", "state": "done"} for name in ("a.py", "b.py")],
        }
    ]


def test_pieces_come_together_first(ledger: Ledger, pool: Pool) -> None:
    """A long file is one answer before it is merged with others, in its own category."""
    started(pool, "concat", items("a.py") + items("long.py", size=20_000))
    row = answer(ledger, pool, "part")
    assert [step["what"] for step in row.steps] == ["pieces"]
    (prompt,) = prompts(ledger, row.step_batch_id)
    assert "Explain long.py:\n(the text)" in prompt
    assert prompt.count("\npart\n") + prompt.endswith("\npart") == row.inputs[1][1]
    row = answer(ledger, pool, "whole")
    assert (row.state, result(pool, row)) == (Stage.DONE, "## a.py\n\npart\n\n## long.py\n\nwhole")


def test_a_merge_too_large_becomes_a_tree(ledger: Ledger, pool: Pool) -> None:
    """Merges of merges, until one context holds what is left."""
    started(pool, "Merge:\n{results}", items(*(f"{i}.py" for i in range(12))))
    row = answer(ledger, pool, "x" * 1_500)
    first = len(ledger.jobs(row.step_batch_id))
    assert first > 1
    row = answer(ledger, pool, "y" * 1_500)
    assert 1 <= len(ledger.jobs(row.step_batch_id)) < first
    while row.state == Stage.RUNNING:
        row = answer(ledger, pool, "short")
    assert (row.state, result(pool, row)) == (Stage.DONE, "short")


def test_a_failed_input_is_named(ledger: Ledger, pool: Pool) -> None:
    """In the last merge, in the list of what is missing, and in results that need no merge."""
    started(pool, "Merge:\n{results}", items("a.py", "b.py", "c.py"))
    row = answer(ledger, pool, "It is a.", None, "It is c.")
    (prompt,) = prompts(ledger, row.step_batch_id)
    assert prompt.endswith("name them as missing: b.py")
    row = answer(ledger, pool, "fine")
    assert (row.state, fan_views.summary(pool, row)["missing"]) == (Stage.DONE, ["b.py"])


def test_nothing_answered_is_a_failure(ledger: Ledger, pool: Pool) -> None:
    """Inputs that all failed, and a last merge that did, say why; there is no result."""
    id_ = started(pool, "concat", items("a.py"))
    row = answer(ledger, pool, None)
    assert (row.state, row.error) == (Stage.FAILED, "none of its inputs was answered (a.py: failed: it broke)")
    with pytest.raises(NotFound, match=f"{id_} is failed and has no result: none of its inputs"):
        fan_views.result(pool, row)


def test_a_failed_merge_is_a_failure(ledger: Ledger, pool: Pool) -> None:
    """The answers stay; the fan-out says that its merge was not answered."""
    started(pool, "Merge:\n{results}", items("a.py"))
    answer(ledger, pool, "It is a.")
    row = answer(ledger, pool, None)
    assert (row.state, row.error) == (Stage.FAILED, "its merges were not answered (1: failed: it broke)")


@pytest.mark.parametrize(
    ("merge", "answers", "expected"),
    [
        (
            "json",
            [{"n": 1}, None, {"n": 3}],
            [{"input": "a", "output": {"n": 1}}, {"input": "b", "output": None}, {"input": "c", "output": {"n": 3}}],
        ),
        ("json-object", [{"n": [1]}, None, {"n": [3], "m": 0}], {"n": [1, 3], "m": 0, "missing": ["b"]}),
        (
            "vote",
            ["Well.\nyes", None, "Yes."],
            {"winner": "yes", "count": 2, "of": 3, "votes": {"yes": 2}, "missing": ["b"]},
        ),
    ],
)
def test_results_that_need_no_model(ledger: Ledger, pool: Pool, merge: str, answers: list[Any], expected: Any) -> None:
    """An array, one object, and a count, each with the inputs that have no answer."""
    started(pool, merge, items("a", "b", "c"))
    row = answer(ledger, pool, *answers)
    assert (row.state, row.step) == (Stage.DONE, 0)
    assert orjson.loads(result(pool, row)) == expected


def test_what_is_asked_fits_the_merge(ledger: Ledger, pool: Pool) -> None:
    """A JSON merge asks for JSON; a vote for a last line, unless answers are labels anyway."""
    wanted = {"json": b'"json":true', "json-object": b'"schema":{"type":"object"}', "vote": b"nothing but your verdict"}
    for number, (merge, said) in enumerate(wanted.items(), 1):
        started(pool, merge, items("a"))
        assert said in ledger.all(Body, job_id=number)[0].body
    started(pool, "vote", items("a"), category="sorts")
    assert b"verdict" not in ledger.all(Body, job_id=4)[0].body


def test_a_judge_picks_the_best(ledger: Ledger, pool: Pool) -> None:
    """One job of numbered answers; the one that it names is the result, as it was."""
    started(pool, "best", items("a.py", "b.py"))
    row = answer(ledger, pool, "It is a.", "It is b.")
    (prompt,) = prompts(ledger, row.step_batch_id)
    assert prompt.startswith("<request>\nExplain {path}:\n{content}\n</request>")
    assert prompt.endswith("### answer 1\nIt is a.\n\n### answer 2\nIt is b.")
    row = answer(ledger, pool, {"best": 2, "reason": "it is longer"})
    assert (row.state, result(pool, row)) == (Stage.DONE, "It is b.")
    assert fan_views.picked(pool, row) == {"input": "b.py", "reason": "it is longer"}


def test_a_private_input_makes_the_merge_private(ledger: Ledger, pool: Pool) -> None:
    """The merge is as private as the most private input, even one that failed; and it touches what they touch."""
    started(pool, "Merge:\n{results}", items("a.py") + items("b.py", folder="private"))
    row = answer(ledger, pool, "It is a.", None)
    (job,) = ledger.jobs(row.step_batch_id)
    assert [j.tier for j in ledger.jobs(row.batch_id)] == [Tier.CLOUD_OK, Tier.LOCAL_ONLY]
    assert job.tier == Tier.LOCAL_ONLY
    assert orjson.loads(job.verdict)["touches"] == ["src/a.py"]


def test_a_merge_of_many_files_is_no_work_on_many_files(ledger: Ledger, pool: Pool) -> None:
    """The policy's rules on paths are asked of inputs; a merge of notes on three files stays at home."""
    started(pool, "Merge:\n{results}", items("a.py", "b.py", "c.py"))
    row = answer(ledger, pool, "note")
    (job,) = ledger.jobs(row.step_batch_id)
    assert (job.model_class, job.state) == ("small", JobState.QUEUED)
    assert orjson.loads(job.verdict)["touches"] == ["src/a.py", "src/b.py", "src/c.py"]


def test_what_is_said_of_all_holds_for_merges(ledger: Ledger, pool: Pool) -> None:
    """Tier, app, priority, time, and a person's consent with what it overruled."""
    said = Said(tier=Tier.LAN_OK, consent=Consent("tests", "me", "2026-01-01"), app="mine")
    given = items("a.py", folder="private")
    started(pool, "Merge:\n{results}", given, said=said, priority=7, deadline=60.0, name="all of it")
    row = answer(ledger, pool, "It is a.")
    (job,), batch = ledger.jobs(row.step_batch_id), ledger.batch(row.step_batch_id)
    assert (job.tier, job.app, batch.priority, batch.name) == (Tier.LAN_OK, "mine", 7, "all of it: merge")
    assert batch.deadline_at - batch.created_at == 60.0
    assert orjson.loads(job.verdict)["consent"] == {
        "why": "tests", "who": "me", "at": "2026-01-01", "overruled": ["root:private"],
    }  # fmt: skip


def test_a_quorum_is_enough(ledger: Ledger, pool: Pool) -> None:
    """Once so many have answered the others are cancelled, named, and not waited for; that cancels no fan-out."""
    started(pool, "concat", items(*"abcdefghij"), quorum=0.7)
    (row,) = ledger.all(FanOutRow)
    assert row.quorum == 7
    me = ledger.worker(capacity=10)
    ledger.fill()
    claimed = sorted(ledger.claim(me), key=lambda job: job.id)
    ledger.record(*(outcome(job, output=b'"x"') for job in claimed[:6]))
    assert not run_once(pool.db, REGISTRY)
    ledger.record(outcome(claimed[6], output=b'"x"'))
    assert run_once(pool.db, REGISTRY) == {Stage.DONE: 1}
    (row,) = ledger.all(FanOutRow)
    assert ledger.states(row.batch_id) == {"done": 7, "cancelled": 3}
    assert fan_views.summary(pool, row)["missing"] == ["h", "i", "j"]


def test_cancelling_a_step_cancels_it(ledger: Ledger, pool: Pool) -> None:
    """Whoever cancels a batch of it means all of it."""
    started(pool, "Merge:\n{results}", items("a", "b"))
    answer(ledger, pool, "note")
    (row,) = ledger.all(FanOutRow)
    endings.cancel(ledger.db, row.step_batch_id)
    assert run_once(pool.db, REGISTRY) == {Stage.CANCELLED: 1}
    assert not run_once(pool.db, REGISTRY)


def test_a_quorum_comes_too_late_for_a_cancel(ledger: Ledger, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that are recorded between a cancel's first commit and its last are enough for nothing."""
    started(pool, "Merge:\n{results}", items(*"abcd"), quorum=0.5)
    (row,) = ledger.all(FanOutRow)
    me = ledger.worker(capacity=4)
    ledger.fill()
    claimed = ledger.claim(me)
    with monkeypatch.context() as cut_short:
        cut_short.setattr(endings, "end_all", lambda *_: 0)
        endings.cancel(ledger.db, row.batch_id)
    ledger.record(*(outcome(job, output=b'"x"') for job in claimed[:2]))
    assert not run_once(pool.db, REGISTRY)
    assert sweeping.expire_batches(ledger.db) == 2
    assert run_once(pool.db, REGISTRY) == {Stage.CANCELLED: 1}
    assert not ledger.all(Batch, kind="merge")


def test_a_quorums_own_cancel_may_be_cut_short(ledger: Ledger, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever dies in it leaves a fan-out that goes on when the sweep has ended the others."""
    started(pool, "concat", items(*"abcd"), quorum=0.5)
    me = ledger.worker(capacity=4)
    ledger.fill()
    ledger.record(*(outcome(job, output=b'"x"') for job in ledger.claim(me)[:2]))
    with monkeypatch.context() as cut_short:
        cut_short.setattr(endings, "end_all", lambda *_: 0)
        assert not run_once(pool.db, REGISTRY)
    assert sweeping.expire_batches(ledger.db) == 2
    assert run_once(pool.db, REGISTRY) == {Stage.DONE: 1}


def test_two_at_once_make_one_merge(ledger: Ledger, pool: Pool) -> None:
    """Beats and clients that look at the same moment submit one batch between them, and lose nothing."""
    id_ = started(pool, "Merge:\n{results}", items(*"abcd"))
    (row,) = ledger.all(FanOutRow)
    me = ledger.worker(capacity=4)
    ledger.fill()
    ledger.record(*(outcome(job, output=b'"x"') for job in ledger.claim(me)))
    found = at_once(*[lambda: advance(pool.db, REGISTRY, id_)] * 4)
    assert sorted(map(str, found)) == ["None", "None", "None", "merges"]
    (row,) = ledger.all(FanOutRow)
    assert (row.step, len(row.steps), len(ledger.all(Batch, kind="merge"))) == (1, 1, 1)
    assert len(ledger.jobs(row.step_batch_id)) == 1


def test_a_crash_before_the_commit_leaves_nothing(ledger: Ledger, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies while it loads a merge is followed by one that makes it anew, once."""
    started(pool, "Merge:\n{results}", items("a", "b"))

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(submit, "open_batch", dies)
        broken.setattr(submit, "drop_loading", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            answer(ledger, pool, "note")
    (row,) = ledger.all(FanOutRow)
    assert (row.step, len(ledger.all(Batch, state="loading"))) == (0, 1)
    ledger.wait(submit.LOADING_SILENT_S + 1)
    assert run_once(pool.db, REGISTRY) == {"merges": 1}
    (row,) = ledger.all(FanOutRow)
    assert (row.step, len(ledger.all(Batch))) == (1, 2)


def test_a_configuration_that_changed_is_said(ledger: Ledger, pool: Pool) -> None:
    """A category that is gone when its turn has come ends the fan-out with words."""
    started(pool, "Merge:\n{results}", items("a"))
    pool.__dict__["registry"] = parse(CONFIG.replace("notes", "other"), "changed")
    row = answer(ledger, pool, "note")
    assert (row.state, "unknown category 'notes'" in row.error) == (Stage.FAILED, True)


def test_the_same_key_is_the_same_fan_out(ledger: Ledger, pool: Pool) -> None:
    """Repeated it changes nothing; for another merge, or when it is a batch's already, it is a conflict."""
    first = started(pool, "concat", items("a"), key="k")
    assert started(pool, "concat", items("a"), key="k") == first
    assert (len(ledger.all(FanOutRow)), len(ledger.all(Batch))) == (1, 1)
    with pytest.raises(Conflict, match="used for another body"):
        started(pool, "json", items("a"), key="k")
    with pytest.raises(Conflict, match="used for another body"):
        started(pool, "concat", items("a"), key="k", quorum=0.5)


@pytest.mark.parametrize(
    ("merge", "more", "words"),
    [
        ("vot", {}, "did you mean 'vote'"),
        ("Merge {result} {results}", {}, "no placeholder {result}"),
        ("concat", {"quorum": 1.5}, "the quorum is a share"),
        ("concat", {"category": "nots"}, "did you mean 'notes'"),
        ("best", {"merge_category": "embed"}, "nobody can merge"),
        ("word " * 2_000 + "{results}", {}, "no room for notes"),
    ],
)
def test_bad_input_is_no_fan_out(
    sqlite_db: ClockedDatabase, tmp_path: Path, merge: str, more: dict[str, Any], words: str
) -> None:
    """Whatever is wrong is found before the first job is there."""
    ledger, pool = Ledger(sqlite_db), Pool(Settings(home=tmp_path))
    pool.__dict__ |= {"db": sqlite_db, "registry": REGISTRY}
    with pytest.raises((UsageError, InputError)) as raised:
        started(pool, merge, items("a"), **more)
    assert words in str(raised.value)
    assert (ledger.all(FanOutRow), ledger.all(Batch)) == ([], [])


def test_an_estimate_is_what_comes(ledger: Ledger, pool: Pool) -> None:
    """A dry run counts jobs and pieces exactly, merges for answers of the usual length; nothing is written."""
    wanted = FanOut(
        asked=[Asked("{path}{content}", "notes")],
        items=items(*"abc") + items("d", size=20_000) + items("secret.pem"),
        placeholders=["path", "content"],
        merge="Merge:\n{results}",
        merge_category="notes",
    )
    found = fanning.estimate(pool, wanted)
    assert (found.inputs, found.cut, found.refused) == (5, 1, 1)
    assert found.jobs > 5
    assert found.piece_merges >= 1
    assert found.merges >= found.levels >= 1
    assert ledger.all(Batch) == []


def test_agents_are_asked_each_so_often(ledger: Ledger, pool: Pool) -> None:
    """Each sample is a job with its agent's system text and category; all are about the same file."""
    agents = [Agent(name="strict", system="Be strict.", samples=2), Agent(name="kind", category="sorts")]
    about = Item("d.md", {"path": "d.md", "content": "A design."}, ("d.md",))
    asked, placeholders, given = fanning.of_agents(agents, "Review as {agent}", "notes", "English.", about)
    wanted = FanOut(asked, given, placeholders, merge="vote")
    batch_id = fanning.start(pool, wanted).batch_id
    assert [(j.line_id, j.category) for j in ledger.jobs(batch_id)] == [
        ("strict #1", "notes"), ("strict #2", "notes"), ("kind", "sorts"),
    ]  # fmt: skip
    bodies = [orjson.loads(row.body) for row in ledger.all(Body)]
    assert [b["system"] for b in bodies] == ["English.\n\nBe strict."] * 2 + ["English."]
    assert bodies[2]["prompt"] == "Review as kind\n\nA design."


def test_a_retried_merge_is_no_ones(ledger: Ledger, pool: Pool) -> None:
    """A merge's batch is the pool's own: a retry of its lines would merge nothing anew."""
    started(pool, "Merge:\n{results}", items("a"))
    row = answer(ledger, pool, "note")
    with pytest.raises(UsageError, match="pool's own"):
        control.retry(ledger.db, row.step_batch_id)


def test_enough_is_noted_once(ledger: Ledger, pool: Pool) -> None:
    """Whoever comes second, or when the step is another, notes nothing."""
    started(pool, "concat", items("a"))
    (row,) = ledger.all(FanOutRow)
    assert fan_outs.end(ledger.db, row, Stage.DONE)
    assert not fan_outs.end(ledger.db, row, Stage.FAILED)
    assert not fan_outs.enough(ledger.db, row)
