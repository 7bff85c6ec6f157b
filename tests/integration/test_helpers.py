"""llm-offload and anchor-offload straight to a server: the contract's examples, exit codes, lines and outputs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.helpers import Home
from tests.support.plain_server import PlainServer, plain_server
from tests.support.pool import simulated
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

LINE = re.compile(r"\[offload\] model=\S+ category=[a-z-]+ tokens=\d+ duration_ms=\d+ validated=(true|false)\n")
#: the contract's table
MODELS = {
    "gemma3:4b": ["summarize", "classify", "extract", "naming", "commit-msg", "translate", "rewrite"],
    "qwen2.5-coder:7b": ["code", "refactor", "test-scaffold", "comment", "explain"],
    "gemma4:26b": ["reason", "plan", "design"],
    "bge-m3": ["embed"],
}
#: nothing listens there
AWAY = simulated("http://127.0.0.1:9")


@pytest.fixture(scope="module")
def simulator() -> Iterator[BackgroundSimulator]:
    """The module's model server."""
    with in_thread(SimulatorConfig(slots=64, loaded_limit=8)) as made:
        yield made


@pytest.fixture
def home(tmp_path: Path, simulator: BackgroundSimulator) -> Home:
    """A home whose every class the simulator serves."""
    simulator.reset()
    return Home(tmp_path / "home", simulated(simulator.url), in_here=True)


@pytest.fixture
def server() -> Iterator[PlainServer]:
    """A server that remembers probes as well."""
    with plain_server() as made:
        yield made


@pytest.fixture
def plain(tmp_path: Path, server: PlainServer) -> Home:
    """A home whose every class that server serves."""
    return Home(tmp_path / "plain", simulated(server.url), in_here=True)


def sent(simulator: BackgroundSimulator) -> int:
    """How many prompts the simulator was sent."""
    return int(simulator.stats()["requests"])


def test_the_raw_examples(home: Home) -> None:
    """The contract's three raw examples end 0, the output on stdout, one line about it on stderr."""
    for arguments in (
        ("summarize", "Reverie is a Rust local-first memory layer."),
        ("code", "write a Rust one-liner that reverses a string"),
        ("--json", "extract", "Return JSON with field 'crates': serde, tokio"),
    ):
        ran = home.llm(*arguments)
        assert ran.code == 0, ran.stderr
        assert LINE.fullmatch(ran.stderr)
        assert "validated=true" in ran.stderr
        assert ran.stdout.endswith(b"\n")
        assert not ran.stdout.endswith(b"\n\n")
    assert "crates" in ran.json
    assert home.telemetry() == []


def test_the_gated_examples(home: Home, simulator: BackgroundSimulator) -> None:
    """A touched security path escalates and nothing is sent; a label is offloaded whatever words it is about."""
    ran = home.anchor("code", "implement auth", "--touches", "src/auth/jwt.rs")
    assert (ran.code, ran.stdout, ran.stderr) == (10, b"", "ESCALATE: security path\n")
    assert sent(simulator) == 0
    ran = home.anchor("classify", "this PR adds a new schema field")
    assert ran.code == 0
    assert re.fullmatch(r"[a-z-]+", ran.text)
    assert LINE.fullmatch(ran.stderr)


def test_each_category_has_its_model(home: Home, simulator: BackgroundSimulator) -> None:
    """The contract's table, without any configuration but where the server is."""
    for model, categories in MODELS.items():
        for category in categories:
            ran = home.llm(category, "Rename it: a, b.")
            assert ran.code == 0, ran.stderr
            assert simulator.calls()[-1]["model"] == model
            assert f"model={model} category={category} " in ran.stderr
    assert all(isinstance(number, float) for number in ran.json)


def test_health(home: Home, plain: Home, server: PlainServer) -> None:
    """`healthy` and 0 where the server answers, 1 and the reason where it does not; nothing is generated."""
    ran = home.llm("--health")
    assert (ran.code, ran.text, ran.stderr) == (0, "healthy", "")
    server.answers["/api/version"] = 404
    assert plain.llm("--health").code == 0
    server.answers["/api/tags"] = 500
    ran = plain.llm("--health")
    assert (ran.code, ran.stdout) == (1, b"")
    assert "answered 500" in ran.stderr
    home.configure(AWAY)
    ran = home.llm("--health")
    assert (ran.code, ran.stdout) == (1, b"")
    assert "nothing listens" in ran.stderr


@pytest.mark.parametrize(
    "answer", ["", " ", "{", "No JSON.", "{} {}", "Here it is:\n```json\n{}\n```", "NaN", '{"a": 1, "a": 2}']
)
def test_json_that_is_none(plain: Home, server: PlainServer, answer: str) -> None:
    """Exit 3 (gated: 11) with nothing on stdout and the one line; an empty answer is a failure of its own."""
    server.says(answer)
    ran = plain.llm("--json", "extract", "x")
    gated = plain.anchor("extract", "x", "--json")
    assert (ran.stdout, gated.stdout) == (b"", b"")
    if answer.strip():
        assert (ran.code, gated.code) == (3, 11)
        assert LINE.fullmatch(ran.stderr)
        assert "validated=false" in ran.stderr
        assert gated.stderr.endswith("ESCALATE: JSON validation failed\n")
    else:
        assert (ran.code, gated.code) == (1, 12)


def test_json_in_one_fence_is_printed_bare(plain: Home, server: PlainServer) -> None:
    """A fence around the JSON is forgiven and taken off; the request asked for JSON at temperature 0."""
    server.says('```json\n{"crates": ["serde"]}\n```\n')
    ran = plain.llm("extract", "--json", "x")
    assert ran.stdout == b'{"crates": ["serde"]}\n'
    body = server.requests[-1][2]
    assert (body["format"], body["options"]["temperature"], body["stream"]) == ("json", 0.0, False)


def test_thoughts_are_no_part_of_the_answer(plain: Home, server: PlainServer) -> None:
    """Leaked thoughts are taken out, the rest is printed as it came; what ends inside a thought is no answer."""
    server.says("<think>\nhm\n</think>\n\n  Ünïcode,\n\nkept.\n\n")
    assert plain.llm("summarize", "x").stdout.decode() == "Ünïcode,\n\nkept.\n"
    server.says("<think>\nhm")
    assert plain.llm("summarize", "x").code == 1


@pytest.mark.parametrize("fault", ["500", "429", "reset", "empty", "notjson", "half", "midstream-error", "truncated"])
def test_a_server_that_fails(home: Home, fault: str) -> None:
    """Exit 1 with one line of words for every fault of a server; through the gate 12, with that code in words."""
    ran = home.llm("summarize", f"My words. [[sim:{fault}]]")
    assert (ran.code, ran.stdout) == (1, b"")
    assert ran.stderr.startswith("llm-offload: ")
    assert ran.stderr.count("\n") == 1
    ran = home.anchor("summarize", f"My words. [[sim:{fault}]]")
    assert (ran.code, ran.stdout) == (12, b"")
    assert ran.stderr.endswith("ESCALATE: llm-offload returned 1\n")
    assert "My words" not in ran.stderr


def test_a_server_that_says_nothing(home: Home, simulator: BackgroundSimulator) -> None:
    """The class's whole time is the longest wait."""
    config = simulated(simulator.url)
    config["classes"]["small"]["timeouts"] = {"total": 0.3}
    home.configure(config)
    ran = home.llm("summarize", "x [[sim:hang]]")
    assert (ran.code, ran.stderr) == (1, "llm-offload: sim: no answer in time\n")


def test_a_server_that_is_away(home: Home) -> None:
    """Raw: exit 1. Gated: 13, but 10 for what is disqualified, which is judged first."""
    home.configure(AWAY)
    ran = home.llm("summarize", "x")
    assert ran.code == 1
    assert "nothing listens" in ran.stderr
    ran = home.anchor("summarize", "x")
    assert (ran.code, ran.stdout, ran.stderr) == (13, b"", "ESCALATE: model server unhealthy\n")
    assert home.anchor("no-such", "x").code == 13
    assert home.anchor("summarize", "x", "--security").code == 10


def test_wrong_raw_calls(home: Home, simulator: BackgroundSimulator) -> None:
    """Exit 2, words on stderr, nothing sent: wrong arguments, categories that are not there or are the cloud's."""
    for arguments in (
        (),
        ("summarize",),
        ("summarize", ""),
        ("summarize", " \n"),
        ("summarize", "two", "words"),
        ("sumarize", "x"),
        ("merge", "x"),
        ("--jsno", "summarize", "x"),
        ("--health", "summarize"),
        ("--health", "--json"),
        ("--json", "embed", "x"),
        ("summarize", "x", "--touches", "a"),
    ):
        ran = home.llm(*arguments)
        assert (ran.code, ran.stdout) == (2, b""), arguments
        assert ran.stderr
    assert "did you mean summarize?" in home.llm("sumarize", "x").stderr
    assert home.llm("summarize", "-", stdin=b"\xff").code == 2
    assert home.llm("summarize", "-", stdin=b"").code == 2
    assert sent(simulator) == 0


def test_wrong_gated_calls(home: Home, simulator: BackgroundSimulator) -> None:
    """The wrapper's own usage errors are exit 2 and leave no line; an unknown category is the raw helper's: 12."""
    for arguments in (
        (),
        ("code",),
        ("code", ""),
        ("code", "two", "words"),
        ("code", "x", "--touches"),
        ("code", "x", "--touches", "--json"),
        ("code", "x", "--for"),
        ("code", "x", "--for", "human", "--for", "agent"),
        ("--touches", "a", "code", "x"),
        ("code", "x", "--tuches", "a"),
    ):
        ran = home.anchor(*arguments)
        assert (ran.code, ran.stdout) == (2, b""), arguments
        assert ran.stderr
    assert home.telemetry() == []
    ran = home.anchor("sumarize", "x")
    assert ran.code == 12
    assert ran.stderr.endswith("ESCALATE: llm-offload returned 2\n")
    assert home.anchor("My secret words", "x").code == 12
    assert [line["category"] for line in home.telemetry()] == ["sumarize", "(no name)"]
    assert sent(simulator) == 0


def test_prompts_from_stdin_and_with_dashes(plain: Home, server: PlainServer) -> None:
    """`-` reads stdin; after `--` nothing is an option; a diff is a prompt."""
    diff = "--- a/x\n+++ b/x"
    for arguments, stdin, prompt in (
        (("summarize", "-"), "Grüße\n".encode(), "Grüße\n"),
        (("summarize", "--", "--json"), b"", "--json"),
        (("commit-msg", diff), b"", diff),
    ):
        assert plain.llm(*arguments, stdin=stdin).code == 0
        assert server.requests[-1][2]["messages"][-1]["content"] == prompt


def test_the_installed_executables_are_these_programs(simulator: BackgroundSimulator, tmp_path: Path) -> None:
    """`llm-offload` and `anchor-offload` as a script calls them: the same codes, stdout and stderr lines."""
    home = Home(tmp_path / "home", simulated(simulator.url))
    ran = home.llm("summarize", "Reverie is a Rust local-first memory layer.")
    assert (ran.code, ran.stdout.count(b"\n")) == (0, 1)
    assert LINE.fullmatch(ran.stderr)
    ran = home.anchor("code", "implement auth", "--touches", "src/auth/jwt.rs")
    assert (ran.code, ran.stdout, ran.stderr) == (10, b"", "ESCALATE: security path\n")
    assert home.anchor("summarize", "-", stdin=b"A note.").code == 0
