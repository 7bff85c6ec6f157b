"""What the README promises, by its own commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.api import Api
from tests.support.pool import clean_environment, running, simulated
from tests.support.processes import of_folder
from tests.support.servers import Server

ROOT = Path(__file__).parents[2]
#: of the repository, what no clone has
NOT_CLONED = shutil.ignore_patterns(".venv", ".git", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The working tree, as a clone after `make setup` would be."""
    made = tmp_path / "clone"
    shutil.copytree(ROOT, made, ignore=NOT_CLONED)
    (made / ".venv").symlink_to(ROOT / ".venv")
    return made


def test_make_demo_shows_a_batch_and_leaves_nothing(clone: Path, tmp_path: Path) -> None:
    """The demo names its model server first, prints a table of all categories and the next command, and is gone."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    before = sorted(clone.rglob("*"))
    environment = clean_environment() | {
        "TMPDIR": str(temporary),
        "PYTHONPATH": str(clone),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        ["sh", "ops/demo.sh"], cwd=clone, env=environment, capture_output=True, timeout=180, stdin=subprocess.DEVNULL
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0, out + err
    assert out.splitlines()[0].startswith("model server: ")
    for category in ("summarize", "classify", "extract", "code", "reason", "embed"):
        row = next(line.split() for line in out.splitlines() if line.startswith(f"{category} "))
        assert int(row[1]) > 0, row
        assert row[2:4] == ["0", "0"], row
    head = next(line for line in out.splitlines() if line.startswith("category ") and " decision " in line)
    assert head.split()[:6] == ["category", "model", "node", "decision", "calls", "done"], "the hour's rollups"
    assert "offload up" in out
    assert "Traceback" not in out + err
    assert list(temporary.iterdir()) == []
    assert of_folder(temporary) == []
    assert sorted(clone.rglob("*")) == before


def test_programs_use_it_as_the_readme_says(tmp_path: Path) -> None:
    """The README's program, with only the address and the file its own, has its batch answered."""
    text = (ROOT / "README.md").read_text()
    block = text.split("    from openai import OpenAI\n")[1].split("\n\nBatches have")[0]
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
    body = {"model": "auto", "messages": [{"role": "user", "content": "Hello."}]}
    (tmp_path / "lines.jsonl").write_text(json.dumps({**line, "body": body}) + "\n")
    server = Server()
    try:
        with running(tmp_path / "pool", simulated(server.url)) as pool:
            pool.up()
            program = textwrap.dedent("    import time\n    from openai import OpenAI\n" + block)
            program = program.replace("http://127.0.0.1:8484", Api(pool).url).replace("sleep(5)", "sleep(0.1)")
            done = subprocess.run(
                [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, timeout=120, check=False
            )
        assert done.returncode == 0, done.stderr.decode()
        assert json.loads(done.stdout)["response"]["body"]["choices"][0]["message"]["content"]
    finally:
        server.close()


def test_an_interrupted_demo_leaves_nothing(clone: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle of the demo stops its pool and takes its folder away."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = clean_environment() | {"TMPDIR": str(temporary), "PYTHONPATH": str(clone)}
    with subprocess.Popen(
        ["sh", "ops/demo.sh"],
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    ) as demo:
        assert demo.stdout is not None
        assert demo.stdout.readline().startswith(b"model server: ")
        os.killpg(demo.pid, signal.SIGINT)
        assert demo.wait(timeout=60) == 130
    assert list(temporary.iterdir()) == []
    assert of_folder(temporary) == []
