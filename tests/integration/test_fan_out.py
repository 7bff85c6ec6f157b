"""Many asked at once, their answers merged: end to end through real workers, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from sqlalchemy import select

from tasks.ledger import fan_outs, reading
from tasks.ledger.fan_outs import Stage
from tasks.tables import Job
from tests.support.api import Api
from tests.support.cli import Ran, started
from tests.support.lazily import Lazily
from tests.support.pool import TestPool, running, simulated
from tests.support.servers import Server
from tests.support.waiting import eventually

if TYPE_CHECKING:
    import openai
else:
    openai = Lazily("openai")

ROOT = Path(__file__).parents[2]
OVERVIEW = ("--each", r"Explain {path}:\n{content}", "--merge", r"Write one overview from these notes:\n{results}")
NOTES = ("--category", "notes", "--merge-category", "overview")

jobs = Job.__table__  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A model server that takes a moment for each answer, so that there is a middle to die in."""
    made = Server(slots=64, ttft_s=0.3)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[TestPool]:
    """A whole pool of two workers; its classes have small contexts, so that files of some pages are cut."""
    config = simulated(server.url, in_flight=8)
    config["providers"].append({"name": "other", "kind": "ollama", "url": server.url, "reach": "local", "in_flight": 8})
    serve = [{"provider": name, "model": "gemma3:4b"} for name in ("sim", "other")]
    config["classes"]["small"] = {"serve": serve, "options": {"num_ctx": 3000}}
    config["classes"]["narrow"] = {"serve": serve, "options": {"num_ctx": 1200}}
    config["categories"] = {
        "notes": {"class": "small", "audit": 0},
        "overview": {"class": "narrow", "max_tokens": 100, "audit": 0},
        "once": {"class": "small", "attempts": 1, "audit": 0},
    }
    config["privacy"] = {"default": "cloud_ok", "roots": {"private": "local_only"}}
    with running(tmp_path_factory.mktemp("fan-out"), config) as made:
        made.up()
        made.worker("other")
        yield made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command line runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def notes(folder: Path, **files: str) -> None:
    """Files of these names and texts."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def shown(pool: TestPool, id_: str) -> Any:
    """What `status --json` says of a fan-out."""
    return pool.cli("fan-out", "status", id_, "--json").json


def submitted(pool: TestPool) -> set[str]:
    """The batches that somebody submitted."""
    return {row.id for row in reading.recent_batches(pool.db, 1_000)}


def leaves(nodes: list[dict[str, Any]]) -> list[str]:
    """The inputs' lines in a tree, from left to right."""
    return [name for n in nodes for name in (leaves(n["parts"]) if "parts" in n else [n["name"]])]


def depth(nodes: list[dict[str, Any]], what: str) -> int:
    """Levels of merges of this kind."""
    return max((depth(n.get("parts", []), what) + (n["what"] == what) for n in nodes), default=0)


@pytest.mark.slow
def test_this_repository_while_a_worker_dies(pool: TestPool, folder: Path) -> None:
    """All of `tasks/**/*.py`, long files in pieces, merges in a tree, kill -9 of a worker: one overview of all."""
    shutil.copytree(ROOT / "tasks", folder / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    files = sorted(map(str, Path("tasks").rglob("*.py")))
    victim = pool.worker("other", "doomed")
    asked = pool.environment, "fan-out", "tasks/**/*.py", *NOTES, *OVERVIEW, "-o", "overview.md"
    with started(*asked, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as command:
        assert command.stderr is not None
        id_ = command.stderr.readline().decode().strip()
        batch = fan_outs.one(pool.db, id_).batch_id

        def is_in_the_middle() -> bool:
            victim.send_signal(signal.SIGSTOP)  # or it might end them between the look and its end
            if pool.batch(batch).done > 5 and _held(pool, batch, "doomed/other"):
                return True
            victim.send_signal(signal.SIGCONT)
            return False

        eventually(is_in_the_middle, "it is in the middle")
        victim.kill()
        held = _held(pool, batch, "doomed/other")
        said = command.stderr.read().decode()
        assert command.wait(60) == 0, said
    found = shown(pool, id_)
    assert held, "calls died with it"
    assert (found["state"], found["inputs"], found["missing"]) == (Stage.DONE, len(files), [])
    assert [step["what"] for step in found["steps"]][:2] == ["inputs", "pieces"]
    assert all(step["done"] == step["total"] for step in found["steps"])
    assert depth(found["tree"], "merge") >= 2
    names = leaves(found["tree"])
    assert list(dict.fromkeys(name.partition(" [")[0] for name in names)) == files, "every file is in it, in order"
    assert len(names) == found["steps"][0]["total"] > len(files), "and every piece, once"
    assert "simulated answer" in Path("overview.md").read_text()
    assert all(f"step {n}, {step['what']}: " in said for n, step in enumerate(found["steps"], 1))
    text = pool.cli("fan-out", "status", id_).text
    assert f"{id_}  done  {len(files)} inputs, prompt" in text
    assert "│  ├─ tasks/app.py  done" in text or "├─ pieces: tasks/app.py  done" in text


def _held(pool: TestPool, batch_id: str, worker: str) -> list[int]:
    """The lines of a batch that a worker runs just now."""
    query = select(jobs.c.line).where(jobs.c.batch_id == batch_id, jobs.c.worker == worker, jobs.c.state == "running")
    with pool.db.read() as c:
        return list(c.execute(query).scalars())


def test_a_folder_is_read_as_git_would(pool: TestPool, folder: Path) -> None:
    """What .gitignore leaves out, git's own folder, links and files that are no text are no inputs."""
    notes(folder, src__a_py="a = 1", src__deep__b_py="b = 1", src__deep__no_log="no", src__keep_log="yes")
    notes(folder, build__x_py="no", src__out__y_py="no")
    (folder / ".gitignore").write_text("build/\n*.log\n!src/keep.log\n")
    (folder / "src" / ".gitignore").write_text("/out\n")
    (folder / ".git" / "info").mkdir(parents=True)
    (folder / ".git" / "info" / "exclude").write_text(".gitignore\n")
    (folder / "src" / "logo.png").write_bytes(b"\x89PNG\0\xff")
    (folder / "src" / "link.py").symlink_to(folder / "build" / "x.py")
    ran = pool.cli("fan-out", ".", "--category", "notes", "--each", "{path}: {content}", "--merge", "json")
    assert ran.code == 0, ran.stderr
    assert [found["input"] for found in ran.json] == ["src/a.py", "src/deep/b.py", "src/keep.log"]
    assert "left out, as no text: src/logo.png" in ran.stderr
    alone = pool.cli("fan-out", "build", "--each", "{content}", "--merge", "json")
    assert (alone.code, "holds no text that .gitignore does not leave out" in alone.stderr) == (2, True)


def test_agents_vote(pool: TestPool, folder: Path) -> None:
    """Every sample of every agent has a voice; the count is there."""
    agents = [{"name": "strict", "system": "Be strict.", "samples": 2}, {"name": "kind", "category": "chat"}]
    (folder / "agents.yaml").write_text(yaml.safe_dump({"agents": agents}))
    notes(folder, design_md="One queue for everything.")
    asked = ("fan-out", "--agents", "agents.yaml", "--file", "design.md", "--merge", "vote", "--category", "classify")
    ran = pool.cli(*asked, "--prompt", "Review this design. Answer with one of: approve, reject.")
    assert ran.code == 0, ran.stderr
    assert (ran.json["of"], sum(ran.json["votes"].values())) == (3, 3)
    assert ran.json["winner"] in ran.json["votes"]
    assert {"approve", "reject"} & set(ran.json["votes"])


def test_agents_read_what_is_piped(pool: TestPool, folder: Path) -> None:
    """`--file -` is standard input: a text, in pieces where it is long, and nothing else."""
    notes(folder, agents_yaml="agents: [{name: one}, {name: two}]\n")
    asked = ("fan-out", "--agents", "agents.yaml", "--prompt", "Review.", "--file", "-", "--merge", "vote", "--dry-run")
    ran = pool.cli(*asked, "--json", stdin=b"word " * 10_000)
    assert (ran.code, ran.json["inputs"], ran.json["cut"]) == (0, 2, 2), ran.stderr
    ran = pool.cli(*asked, stdin=b"\xff\xfe")
    assert (ran.code, "-: is no text" in ran.stderr) == (2, True), ran.stderr


def test_failed_inputs_are_named(pool: TestPool, folder: Path) -> None:
    """In the exit code, on stderr, in the result; a quorum does without them."""
    lines = "fine\nbroken [[sim:500]]\nfine too\n"
    ran = pool.cli(
        "fan-out", "--lines", "-", "--category", "once", "--each", "Say: {line}", "--merge", "concat",
        stdin=lines.encode(),
    )  # fmt: skip
    assert (ran.code, "not done: 2" in ran.stderr) == (6, True)
    assert [part.split("\n")[0] for part in ran.text.split("## ")[1:]] == ["1", "2", "3"]
    assert "## 2\n\n(no answer)" in ran.text


@pytest.mark.slow
def test_a_quorum_does_not_wait(pool: TestPool, folder: Path) -> None:
    """Enough answers are merged while one hangs, which is cancelled and named."""
    rows = "name,text\none,a note\ntwo,another\nthree,[[sim:hang]]\n"
    (folder / "rows.csv").write_text(rows)
    ran = pool.cli(
        "fan-out", "--csv", "rows.csv", "--category", "once", "--each", "{name}: {text}", "--quorum", "0.6",
        "--merge", "json", "--json",
    )  # fmt: skip
    assert ran.code == 6, ran.stderr
    assert ran.json["missing"] == ["4"], "rows are called by their line"
    assert [found["output"] is None for found in ran.json["result"]] == [False, False, True]
    assert (ran.json["steps"][0]["done"], ran.json["steps"][0]["cancelled"]) == (2, 1)


def test_a_private_input_makes_the_merge_private(pool: TestPool, folder: Path) -> None:
    """A folder that is marked private tightens its files' jobs and every merge of them."""
    notes(folder, open_md="Anybody may read this.", private__plan_md="Nobody may.")
    ran = pool.cli("fan-out", "open.md", "private/*.md", *NOTES, *OVERVIEW, "--json")
    assert ran.code == 0, ran.stderr
    tiers = [[r["privacy"] for r in pool.results(step["batch"])] for step in ran.json["steps"]]
    assert tiers == [["cloud_ok", "local_only"], ["local_only"]]
    assert [r["verdict"].get("touches") for r in pool.results(ran.json["steps"][1]["batch"])] == [
        ["open.md", "private/plan.md"]
    ]


@pytest.mark.slow
def test_a_judge_picks(pool: TestPool, folder: Path) -> None:
    """The best answer is one of the answers, as it was."""
    rows = [{"topic": "tides"}, {"topic": "tents"}, {"topic": "tin"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = pool.cli(
        "fan-out", "--jsonl", "rows.jsonl", "--category", "notes", "--each", "Write on {topic}.", "--merge", "best",
        "--merge-category", "notes", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    answers = {r["id"]: r["output"] for r in pool.results(ran.json["steps"][0]["batch"])}
    assert ran.json["result"] == answers[ran.json["best"]["input"]]
    assert [step["what"] for step in ran.json["steps"]] == ["inputs", "judge"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("*.md", "--each", "{contents}", "--merge", "concat"), "did you mean 'content'"),
        (("*.md", "--each", "{content}", "--merge", "vot"), "did you mean 'vote'"),
        (("*.txt", "--each", "{content}", "--merge", "json"), "*.txt: there is no such file"),
        (("bad.bin", "--each", "{content}", "--merge", "json"), "bad.bin: is no text"),
        (("*.md", "--lines", "-", "--each", "{content}", "--merge", "json"), "inputs of one kind"),
        (("--agents", "agents.yaml", "--prompt", "x", "--merge", "vote"), "agents.yaml:1: agents.0.nam: unknown key"),
        (("--jsonl", "-", "--each", "{a}", "--merge", "json"), "line 2: lacks a"),
        (("--csv", "-", "--each", "{a}", "--merge", "json"), "no placeholder {a} here"),
        (("*.md", "--each", "{content}", "--merge", "json", "--category", "nots"), "did you mean 'notes'"),
        (("*.md", "--each", "{content}", "--merge", "json", "-o", "nowhere/x"), "cannot be written"),
    ],
)
def test_bad_input_is_no_fan_out(pool: TestPool, folder: Path, arguments: tuple[str, ...], words: str) -> None:
    """Exit 2, with what is wrong; not one job is there."""
    notes(folder, a_md="A note.", agents_yaml="agents: [{nam: x}]\n")
    (folder / "bad.bin").write_bytes(b"\xff\xfe")
    before = submitted(pool)
    ran = pool.cli("fan-out", *arguments, stdin=b'{"a": 1}\n{"b": 1}\n')
    assert (ran.code, words in ran.stderr) == (2, True), ran.stderr
    assert submitted(pool) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/dev/zero", "/dev/zero: is no regular file"),
        ("pipe", "pipe: is no regular file"),
        ("folde", "?.md: has a name that is no UTF-8"),
        ("folde/*.md", "?.md: has a name that is no UTF-8"),
        ("x" * 5_000, "cannot be read (File name too long)"),
    ],
    ids=["device", "pipe", "folder", "glob", "long"],
)
def test_files_that_are_none(pool: TestPool, folder: Path, name: str, words: str) -> None:
    """What is no regular file, or has a name that nobody could write, is named; nothing waits for it."""
    os.mkfifo(folder / "pipe")
    (folder / "folde").mkdir()
    (folder / "folde" / os.fsdecode(b"\xff.md")).write_text("A note.")
    os.mkfifo(folder / "folde" / ".gitignore")
    ran = pool.cli("fan-out", name, *NOTES, *OVERVIEW)
    assert (ran.code, words in ran.stderr) == (2, True), ran.stderr


def test_a_dry_run_submits_nothing(pool: TestPool, folder: Path) -> None:
    """It says how many jobs, pieces and merges there would be."""
    notes(folder, a_md="A note.", b_md="word " * 10_000)
    before = submitted(pool)
    ran = pool.cli("fan-out", "*.md", *NOTES, *OVERVIEW, "--dry-run", "--json")
    assert ran.code == 0, ran.stderr
    assert (ran.json["inputs"], ran.json["cut"], ran.json["refused"]) == (2, 1, 0)
    assert ran.json["jobs"] > 5
    assert ran.json["piece_merges"] >= 1
    assert ran.json["merges"] >= 1
    assert "about, in" in pool.cli("fan-out", "*.md", *NOTES, *OVERVIEW, "--dry-run").text
    assert submitted(pool) == before


def test_keys_that_nobody_asks_for(pool: TestPool) -> None:
    """An object may lack what the prompt does not ask for."""
    stdin = b'{"a": 1, "b": 2}\n{"a": 3}\n'
    ran = pool.cli("fan-out", "--jsonl", "-", "--each", "{a}", "--merge", "concat", "--dry-run", "--json", stdin=stdin)
    assert (ran.code, ran.json["jobs"]) == (0, 2), ran.stderr


@pytest.mark.slow
def test_nobody_needs_to_wait(pool: TestPool, folder: Path) -> None:
    """Beat moves it on; the same key is the same fan-out; its result is fetched later."""
    notes(folder, a_md="A note.", b_md="Another.")
    asked = ("fan-out", "*.md", *NOTES, *OVERVIEW, "--no-wait", "--idempotency-key", "again")
    id_ = pool.cli(*asked).text
    assert pool.cli(*asked).text == id_
    eventually(lambda: fan_outs.one(pool.db, id_).state == Stage.DONE, "beat merges")
    fetched: Ran = pool.cli("fan-out", "result", id_)
    assert (fetched.code, "simulated" in fetched.text) == (0, True)
    assert pool.cli("fan-out", "result", id_, "--json").json["result"] == fetched.text
    unknown = pool.cli("fan-out", "status", "fan_nothing")
    assert (unknown.code, "there is no fan-out 'fan_nothing'" in unknown.stderr) == (5, True)


@pytest.mark.slow
def test_ctrl_c_leaves_it_running(pool: TestPool, folder: Path) -> None:
    """Exit 130 with the command that comes back; the fan-out goes on to its end."""
    notes(folder, a_md="A note. [[sim:delay=8]]")
    asked = pool.environment, "fan-out", "a.md", *NOTES, *OVERVIEW
    with started(*asked, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as command:
        assert command.stderr is not None
        id_ = command.stderr.readline().decode().strip()
        command.stderr.readline()
        command.send_signal(signal.SIGINT)
        said = command.stderr.read().decode()
        assert command.wait(30) == 130, said
    assert f"the fan-out goes on; come back with: offload fan-out status {id_}" in said
    eventually(lambda: fan_outs.one(pool.db, id_).state == Stage.DONE, "it ends")


def test_one_that_runs_is_cancelled_and_stays_so(pool: TestPool, folder: Path, api: Api) -> None:
    """By the command and over HTTP: its jobs end, no merge comes, and a second word changes nothing."""
    notes(folder, a_md="A note. [[sim:delay=300]]")
    for way in ("command", "http"):
        id_ = pool.cli("fan-out", "a.md", *NOTES, *OVERVIEW, "--no-wait").text.strip()
        assert f"offload fan-out cancel {id_}" in pool.cli("cancel", id_).stderr
        if way == "command":
            ran = pool.cli("fan-out", "cancel", id_)
            assert (ran.code, ran.stderr.strip()) == (0, "1 jobs cancelled; the fan-out is cancelled")
        else:
            assert api.ask("POST", f"/fan-outs/{id_}/cancel").json()["state"] == "cancelled"
        batch = pool.batch(fan_outs.one(pool.db, id_).batch_id)
        assert (batch.state, batch.open, batch.cancelled) == ("cancelled", 0, 1)
        again = pool.cli("fan-out", "cancel", id_, "--json")
        assert json.loads(again.text) == {"id": id_, "state": "cancelled", "cancelled": 0}
        assert pool.cli("fan-out", "result", id_).code != 0


# --- HTTP -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def api(pool: TestPool) -> Iterator[Api]:
    """Its API."""
    made = Api(pool)
    yield made
    made.kill()


WANTED: dict[str, Any] = {
    "inputs": [{"path": "a.md", "content": "A note."}, {"path": "b.md", "content": "word " * 4_000}],
    "each": "Explain {path}:\n{content}",
    "category": "notes",
    "merge": "One overview:\n{results}",
    "merge_category": "overview",
}


@pytest.mark.slow
def test_over_http(pool: TestPool, api: Api) -> None:
    """Submitted, watched and fetched as JSON; beat does the merging; a repeated key is the same fan-out."""
    made = [api.ask("POST", "/fan-outs", json=WANTED, headers={"idempotency-key": "h"}).json() for _ in range(2)]
    assert (made[0]["inputs"], made[0]["new"], made[1]["new"]) == (2, True, False)
    assert made[0]["id"] == made[1]["id"]
    path = f"/fan-outs/{made[0]['id']}"
    eventually(lambda: api.ask("GET", path).json()["state"] == Stage.DONE, "it is done", 60)
    found = api.ask("GET", f"{path}?tree=true").json()
    assert [step["what"] for step in found["steps"]] == ["inputs", "pieces", "merge"]
    assert leaves(found["tree"])[0] == "a.md"
    assert "simulated" in found["result"]
    assert api.ask("GET", f"{path}/result").text == found["result"]
    assert api.ask("GET", f"/batches/{made[0]['batch']}").json()["done"] == made[0]["jobs"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"each": "{contents}"}, "did you mean 'content'"),
        ({"merge": "vot"}, "did you mean 'vote'"),
        ({"inputs": [{"a": "1"}, {"b": "1"}]}, "has other keys"),
        ({"inputs": []}, "inputs"),
        ({"schema": {"const": 10**30}}, "schema: "),
        ({"schema": {"const": "\ud800"}}, "schema: "),
        ({"inputs": [{"path": "\ud800", "content": ""}]}, "inputs: "),
        ({"agents": [{"name": "\ud800"}]}, "agents: "),
        ({"name": "\ud800"}, "name: "),
        ({"agents": [{"name": "x"}]}, "agents: are needed with `prompt`"),
        ({"category": "nots"}, "did you mean 'notes'"),
        ({"quorum": 0}, "quorum"),
        ({"inputs": [{"path": "a", "content": "nul \0"}]}, "NUL"),
        ({"folder": "/etc"}, "folder"),
    ],
)
def test_bad_requests(api: Api, pool: TestPool, changes: dict[str, Any], words: str) -> None:
    """400 in OpenAI's shape, with what is wrong; not one job is there."""
    before = submitted(pool)
    raw = json.dumps(WANTED | changes)  # httpx's own refuses half a character
    answer = api.ask("POST", "/fan-outs", content=raw, headers={"content-type": "application/json"})
    assert (answer.status_code, words in answer.json()["error"]["message"] + str(answer.json()["error"]["param"])) == (
        400,
        True,
    ), answer.text
    assert submitted(pool) == before
    assert api.ask("GET", "/fan-outs/fan_nothing").status_code == 404


@pytest.mark.slow
def test_keys_see_their_own(pool: TestPool, api: Api) -> None:
    """One key's fan-out, and the batches of its merges, are not another's; an administrator sees both."""
    made: dict[str, tuple[str, ...]] = {"a": (), "b": (), "c": ("--scope", "admin")}
    keys = {name: pool.cli("keys", "create", name, *more).text for name, more in made.items()}
    heads = {name: {"authorization": f"Bearer {key}"} for name, key in keys.items()}
    asked = WANTED | {"merge": "concat"}
    eventually(lambda: api.ask("GET", "/fan-outs/x").status_code == 401, "keys are asked for")
    id_ = api.ask("POST", "/fan-outs", json=asked, headers=heads["a"]).json()["id"]
    found = eventually(lambda: _done(api, id_, heads["a"]), "it is done", 60)
    for path in (f"/fan-outs/{id_}", f"/fan-outs/{id_}/result", f"/batches/{found['steps'][1]['batch']}"):
        codes = {name: api.ask("GET", path, headers=head).status_code for name, head in heads.items()}
        assert codes == {"a": 200, "b": 404, "c": 200}, path


def _done(api: Api, id_: str, head: dict[str, str]) -> Any:
    found = api.ask("GET", f"/fan-outs/{id_}", headers=head).json()
    return found if found["state"] == Stage.DONE else None


@pytest.mark.slow
def test_by_hand_with_openai(pool: TestPool, api: Api, folder: Path) -> None:
    """The documentation's program, with only its address and key changed: a batch, and a second call that merges."""
    notes(folder, a_md="A note.", b_md="Another.")
    page = (ROOT / "ops" / "docs" / "fan-out.md").read_text()
    program = textwrap.dedent("    import json" + page.split("    import json", 1)[1])
    key = pool.cli("keys", "create", "hand").text
    program = (
        program.replace("http://127.0.0.1:8484", api.url)
        .replace('"none"', f'"{key}"')
        .replace("sleep(5)", "sleep(0.1)")
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "a.md", "b.md"], capture_output=True, timeout=120, check=False
    )
    assert (done.returncode, b"simulated" in done.stdout) == (0, True), done.stderr.decode()
