"""`offload stats`, `rollup` and `prune` by their words, their JSON and their exit codes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from api.use_cases.stats import hour_name
from tasks.ledger.schema import open_ledger
from tasks.rollups import hour_of
from tasks.tables import CallRow
from tests.support.cli import Ran, offload
from tests.support.pool import clean_environment

calls = CallRow.__table__  # type: ignore[attr-defined]
SECRET = "my secret prompt"


class Home:
    """A home with a ledger, and no pool."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "home"
        self.environment = clean_environment() | {"OFFLOAD_HOME": str(self.path), "OFFLOAD_NODE": "here"}
        self.now = time.time()

    def cli(self, *arguments: str) -> Ran:
        return offload(self.environment, *arguments)

    def calls(self, n: int = 1, *, ago_s: float = 0.0, **figures: Any) -> str:
        """Calls that ended so long ago; their hour."""
        end = self.now - ago_s
        row = {
            "job_id": 0, "batch_id": "", "fence": 0, "category": "code", "model_class": "coder", "provider": "gpu",
            "node": "n1", "model_asked": "m", "started_at": end - 0.5, "duration_ms": 500.0, "hour": hour_of(end),
            "tokens_in": 10, "tokens_out": 2, "ended": "done",
        }  # fmt: skip
        db = open_ledger(self.path / "ledger.db")
        with db.write() as c:
            c.execute(insert(calls), [row | figures] * n)
        db.close()
        return hour_name(hour_of(end))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """One in which nothing was done."""
    return Home(tmp_path)


def test_stats_are_kept_apart_by_what_is_asked(home: Home) -> None:
    """Each group has its figures, and all of them together theirs; the table says the same."""
    home.calls(2, category="code", app="shop", queue_ms=1000.0)
    home.calls(1, category="summarize", node="n2", ended="failed", error_code="bad_json")
    home.calls(1, ago_s=30 * 3600, category="old")
    for by, groups in (("category", {"code": 2, "summarize": 1}), ("node", {"n1": 2, "n2": 1}), ("model", {"m": 3})):
        found = home.cli("stats", "--by", by, "--json").json
        assert {row[by]: row["calls"] for row in found["rows"]} == groups
        total = found["total"]
        assert (total["calls"], total["jobs_done"], total["jobs_failed"], total["json_failures"]) == (3, 2, 1, 1)
    assert found["total"]["duration_p50"] == pytest.approx(500, rel=0.01)
    assert {row["app"] for row in home.cli("stats", "--by", "app", "--json").json["rows"]} == {"", "shop"}
    text = home.cli("stats").text.splitlines()
    assert text[0].split()[:4] == ["category", "calls", "done", "failed"]
    assert [line.split()[:2] for line in text[1:]] == [["code", "2"], ["summarize", "1"], ["all", "3"]]


def test_stats_of_another_time(home: Home) -> None:
    """--hour is one hour, --since the last seconds, minutes, hours or days; of nothing it is said so."""
    hour = home.calls(4, ago_s=30 * 3600)
    assert home.cli("stats", "--hour", hour, "--json").json["total"]["calls"] == 4
    assert home.cli("stats", "--since", "2d", "--json").json["total"]["calls"] == 4
    ran = home.cli("stats", "--since", "90")
    assert (ran.code, ran.text) == (0, "")
    assert "nothing was done" in ran.stderr
    for wrong in (("--hour", "yesterday"), ("--since", "soon"), ("--since", "-5"), ("--since", ""), ("--by", "colour")):
        ran = home.cli("stats", *wrong)
        assert (ran.code, ran.text) == (2, "")
    assert home.cli("stats", "--hour", hour, "--since", "1h").code == 2


def test_a_rollup_is_run_and_shown(home: Home) -> None:
    """It sums what is due; the newest hour is shown, or the one that is named; running it again changes nothing."""
    assert home.cli("rollup").code == 5
    old = home.calls(1, ago_s=3 * 3600)
    new = home.calls(2)
    assert home.cli("rollup", "--json").json["hour"] == new
    assert home.cli("rollup", "--json").json["total"]["calls"] == 2
    assert home.cli("rollup", "--hour", old, "--json").json["total"]["calls"] == 1
    ran = home.cli("rollup", "--hour", old)
    assert ran.text.splitlines()[1].split()[:4] == ["code", "m", "n1", "offload"]
    assert ran.stderr == f"hour {old} (UTC)\n"
    home.calls(5, ago_s=3 * 3600)
    assert home.cli("rollup", "--hour", old, "--json").json["total"]["calls"] == 6


def test_the_helpers_log_is_taken_in(home: Home) -> None:
    """What anchor-offload logged without a pool is in the hour's sums, once."""
    home.path.mkdir()
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(home.now))
    line = {"ts": at, "category": "classify", "decision": "offload", "reason": "none", "duration_ms": 4, "exit_code": 0}
    (home.path / "offload.jsonl").write_text(json.dumps(line) + "\n")
    for _ in range(2):
        found = home.cli("rollup", "--json").json
        assert [(r["app"], r["node"], r["jobs_done"]) for r in found["rows"]] == [("anchor-offload", "here", 1)]


def test_an_export_goes_to_a_file(home: Home, tmp_path: Path) -> None:
    """Each hour under its key, beside those that are there; the same hour again takes its own place."""
    file = tmp_path / "memory.json"
    old, new = home.calls(1, ago_s=3 * 3600), home.calls(2)
    for hour in (old, new, new):
        ran = home.cli("rollup", "--hour", hour, "--export", str(file))
        assert ran.code == 0
        assert f"exported: metrics/offload/hourly/{hour}" in ran.stderr
    kept = json.loads(file.read_bytes())
    assert set(kept) == {f"metrics/offload/hourly/{old}", f"metrics/offload/hourly/{new}"}
    assert kept[f"metrics/offload/hourly/{new}"]["total"]["calls"] == 2
    file.write_text("notes of mine")
    assert home.cli("rollup", "--export", str(file)).code == 2
    assert file.read_text() == "notes of mine"
    ran = home.cli("rollup", "--export", str(tmp_path / "no" / "where"))
    assert (ran.code, ran.stderr.count("\n")) == (1, 1)


@contextmanager
def webhook(status: int, users: list[str | None] | None = None) -> Iterator[tuple[str, list[Any]]]:
    """A server that answers so; its address, and what it was sent. users: gets who asked."""
    sent: list[Any] = []
    asked = [] if users is None else users

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            asked.append(self.headers["Authorization"])
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{SECRET.replace(' ', '-')}", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_export_goes_to_a_webhook(home: Home) -> None:
    """Key and value are posted; one that fails is told, without its path, which may be a secret."""
    hour = home.calls(2)
    with webhook(204) as (url, sent):
        assert home.cli("rollup", "--export", url).code == 0
    assert [(body["key"], body["value"]["total"]["calls"]) for body in sent] == [(f"metrics/offload/hourly/{hour}", 2)]
    with webhook(500) as (url, _):
        ran = home.cli("rollup", "--export", url)
        assert (ran.code, "answered 500" in ran.stderr, "secret" in ran.stderr) == (1, True, False)
    ran = home.cli("rollup", "--export", url)
    assert (ran.code, "not reached" in ran.stderr, "secret" in ran.stderr) == (1, True, False)


def test_an_exports_password_is_sent_to_its_webhook_only(home: Home) -> None:
    """A user and a password in a webhook's address are credentials, and no part of the host's name."""
    home.calls()
    users: list[str | None] = []
    with webhook(204, users) as (url, _):
        ran = home.cli("rollup", "--export", url.replace("//", "//me:p%40ss@"))
    assert (ran.code, users) == (0, ["Basic bWU6cEBzcw=="]), ran.stderr


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("http://[", "address is none"),
        ("http://", "address is none"),
        (f"http://me:{SECRET}@:80", "address is none"),
        (f"http://h:{SECRET}", "address is none"),
        (f"http://127.0.0.1:1/{SECRET}", "address is none"),
        ("/dev/zero", "/dev/zero is no regular file"),
    ],
)
def test_an_export_to_nowhere(home: Home, where: str, words: str) -> None:
    """What is no address, or no file that could be replaced, is exit 2, and a secret in it is not repeated."""
    home.calls()
    ran = home.cli("rollup", "--export", where)
    assert (ran.code, words in ran.stderr, SECRET in ran.stderr) == (2, True, False), ran.stderr


def test_a_prune_keeps_what_the_configuration_says(home: Home) -> None:
    """Old calls go, their sums stay; --days says otherwise for once; nonsense is refused."""
    old = home.calls(3, ago_s=5 * 24 * 3600)
    home.calls(1)
    (home.path / "offload.yaml").write_text("retention: {calls_days: 7}\n")
    assert home.cli("prune", "--json").json == {"calls": 0, "hours": 0, "days": 7.0}
    assert home.cli("prune", "--days", "2", "--json").json == {"calls": 3, "hours": 1, "days": 2.0}
    assert home.cli("stats", "--hour", old, "--json").json["total"]["calls"] == 0
    assert home.cli("rollup", "--hour", old, "--json").json["total"]["calls"] == 3
    assert "0 calls" in home.cli("prune").stderr
    assert home.cli("prune", "--days", "0").code == 2
    (home.path / "offload.yaml").write_text("retention: {call_days: 7}\n")
    ran = home.cli("prune")
    assert (ran.code, "did you mean 'calls_days'?" in ran.stderr) == (2, True)
