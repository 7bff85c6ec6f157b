"""Prometheus and Grafana's files against the real Prometheus, and the exporter of a real batch."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from api.commands import COMMANDS, cli
from api.exporting.families import families
from api.exporting.tally import zeros
from tasks.config import parse
from tests.support.needed import needed
from tests.support.pool import TestPool, running, simulated
from tests.support.ports import free_port
from tests.support.waiting import eventually
from workers.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.slow

OPS = Path(__file__).parents[2] / "ops"
RULES = yaml.safe_load((OPS / "prometheus" / "alerts.yml").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
DASHBOARD = json.loads((OPS / "grafana" / "dashboard.json").read_text())
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [needed("promtool", "Debian's prometheus"), *arguments]
    return subprocess.run(command, cwd=OPS / "prometheus", capture_output=True, text=True)


def test_prometheus_accepts_its_files() -> None:
    """`promtool check` finds nothing wrong with the configuration and the rules it names."""
    for check in (("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml")):
        done = promtool(*check)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_and_is_quiet() -> None:
    """The rules' own tests pass, and each alert has one in which it fires and one in which it does not."""
    done = promtool("test", "rules", "alerts_test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    cases = yaml.safe_load((OPS / "prometheus" / "alerts_test.yml").read_text())["tests"]
    seen = {(one["alertname"], bool(one["exp_alerts"])) for case in cases for one in case["alert_rule_test"]}
    assert seen == {(name, fires) for name in ALERTS for fires in (True, False)}


def test_alerts_and_panels_ask_for_what_the_exporter_tells() -> None:
    """Every metric and label that a rule or a panel names is the exporter's."""
    registry = parse(yaml.safe_dump(simulated("http://127.0.0.1:9")), "test")
    told = set()
    for family in families(None, None, None, zeros(registry)):
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        told |= {family.name + end for end in ends}
    asked = " ".join([rule["expr"] for rule in ALERTS.values()] + [query for _, query in QUERIES])
    assert set(re.findall(r"\boffload_\w+", asked)) <= told


def test_every_alert_has_its_page() -> None:
    """An alert's runbook is there and says symptom, meaning and mending; no page is left without its alert."""
    for name, rule in ALERTS.items():
        page = OPS.parent / rule["annotations"]["runbook"]
        assert page.stem == name
        heads = re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE)
        assert heads == ["Symptom", "What it means", "What mends it"], name
    pages = {page.stem for page in (OPS / "docs" / "runbook").glob("Offload*.md")}
    assert pages == set(ALERTS)


def test_every_command_of_the_docs_exists() -> None:
    """Each `offload …` of the runbook and the operations page is a command that takes these words."""
    for page in [*(OPS / "docs" / "runbook").glob("Offload*.md"), OPS / "docs" / "operations.md"]:
        commands = [line.strip() for line in page.read_text().splitlines() if re.match(r"    \S", line)]
        assert commands, page.name
        for line in commands:
            check_command(line.partition("  #")[0])


def check_command(line: str) -> None:
    """Fails for a command line that names no command, subcommand or option of ours; others' commands pass."""
    for found in re.findall(r"(?<![\w=/-])offload ((?:[a-z-]+)(?: [^|;&]*)?)", line):
        words = found.split()
        assert words[0] in COMMANDS, line
        _check_words(words, line)


def _check_words(words: list[str], line: str) -> None:
    context = click.Context(cli)
    command: Any = cli.get_command(context, words[0])
    rest = words[1:]
    if isinstance(command, click.Group) and rest:
        command = command.get_command(context, rest.pop(0))
        assert command is not None, line
    command.make_context("offload", rest)  # reads the words, and runs nothing


def test_every_file_of_the_docs_exists() -> None:
    """Each path of the tree that the operations page names is there."""
    named = re.findall(r"\b(?:ops|tests)/[\w./-]*\w", (OPS / "docs" / "operations.md").read_text())
    made = ("ops/certs/", "ops/.env")  # on the machine, by the commands of the page
    assert [name for name in named if not f"{name}/".startswith(made) and not (OPS.parent / name).exists()] == []


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[TestPool]:
    """A pool with a limit, and a cloud that the simulator plays."""
    with in_thread(SimulatorConfig(slots=64, loaded_limit=8)) as simulator:
        limits = [{"unit": "requests", "per": "day", "most": 100_000}]
        with running(tmp_path, simulated(simulator.url, limits=limits)) as made:
            yield made


def test_every_panel_shows_something_of_a_real_batch(pool: TestPool, tmp_path: Path) -> None:
    """A real Prometheus scrapes the real exporter while batches run: each panel's every query returns a series."""
    pool.up()
    exporter, own = free_port(), free_port()
    pool.start("metrics", "--port", str(exporter))
    program = needed("prometheus", "Debian's prometheus")
    with prometheus(program, tmp_path, f"127.0.0.1:{exporter}", own):
        eventually(lambda: asked(own, "offload_ledger_up == 1"), "the exporter is scraped", 60)
        for _ in range(3):
            pool.finished(pool.submit([{"category": "summarize", "prompt": f"job {i}"} for i in range(100)]))
        pool.finished(pool.submit([{"category": "merge", "prompt": "there is no cloud here"}]))
        for title, query in QUERIES:
            query = query.replace("$__rate_interval", "1m")
            eventually(lambda q=query: asked(own, q), f"{title}: {query}", 60, every_s=0.5)  # type: ignore[misc]
        fired = asked(own, 'ALERTS{alertstate="firing"}')
        assert fired == [], "a pool that is well raises no alert"


class prometheus:
    """A real one with the shipped configuration, scraping one exporter every second."""

    def __init__(self, program: str, folder: Path, exporter: str, port: int) -> None:
        text = (
            (OPS / "prometheus" / "prometheus.yml").read_text().replace("metrics:9811", exporter).replace("15s", "1s")
        )
        (folder / "prometheus.yml").write_text(text)
        (folder / "alerts.yml").write_text((OPS / "prometheus" / "alerts.yml").read_text())
        self._log = (folder / "prometheus.log").open("ab")
        self._command = [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]

    def __enter__(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=self._log, stderr=self._log)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def asked(port: int, query: str) -> list[Any]:
    """The series of numbers that a query returns now; none while Prometheus does not answer yet."""
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return [one for one in json.load(answer)["data"]["result"] if one["value"][1] != "NaN"]
    except OSError:
        return []
