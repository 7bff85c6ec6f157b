"""Every rule of the helpers' contract, over both ways in: anchor-offload, and offload run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from api.helpers import gated
from api.use_cases.pool import Pool
from api.use_cases.submitting import submit_line
from tasks.ledger import reading
from tasks.routing import Said
from tasks.settings import Settings
from tests.support.cli import offload
from tests.support.helpers import Home
from tests.support.pool import simulated
from workers.simulator import BackgroundSimulator, SimulatorConfig, in_thread

FILES, PATH, AUDIENCE = "touches more than one file", "security path", "the answer goes to people or to production"
FLAG, GRAVE, LONG = "marked as security work", "hard to take back", "prompt over 16 KiB"


@dataclass(frozen=True)
class Case:
    """A job, and the reasons not to leave it to a local model; with none it is offloaded."""

    reasons: tuple[str, ...] = ()
    category: str = "classify"
    prompt: str = "this PR adds a new schema field"
    touches: tuple[str, ...] = ()
    audience: str | None = None
    security: bool = False

    @property
    def arguments(self) -> list[str]:
        """What both ways in call them, but for --touches."""
        audience = ["--for", self.audience] if self.audience else []
        return [self.category, self.prompt, *audience, *(["--security"] if self.security else [])]


LIGHT = (
    "summarize", "classify", "extract", "naming", "commit-msg", "translate", "rewrite", "code", "refactor",
    "test-scaffold", "comment", "explain", "reason", "plan", "design", "embed", "chat",
)  # fmt: skip
SECRET = (
    "src/auth/mod.rs", "authors.txt", "AUTH.md", "lib/Security.kt", "crypto.c", "src/crypto/aes.c", "my-secrets.yaml",
    ".env", "prod.env", "deploy/.env.local", "home/me/.ssh/config", ".ssh/known_hosts", "src/jwt/sign.py", "jwt.rs",
    "JWT_tools.py", "src\\auth\\jwt.rs", "./auth.rs", "id_rsa.pub", "tls/server.pem", "deploy.key", "oauth.py",
    "passwords.txt", ".aws/config", ".gnupg/x",
)  # fmt: skip
HARMLESS = ("src/parser.rs", "environment.md", "src/my-jwt.rs", "keyboard.py", "README", "ssh/config")
PEOPLE = ("human", "main", "escalation", "production", "user-facing", "Human", "USER_FACING", "user facing", " main ")

CASES = {
    **{f"category-{name}": Case(category=name) for name in LIGHT},
    **{
        f"category-{name}": Case((GRAVE,), category=name)
        for name in ("merge", "migrate", "schema-change", "deploy", "release")
    },
    **{f"path-{path}": Case((PATH,), touches=(path,)) for path in SECRET},
    **{f"path-{path}": Case(touches=(path,)) for path in HARMLESS},
    "two-files": Case((FILES,), touches=("a.py", "b.py")),
    "three-files-one-of-them-secret": Case((FILES, PATH), touches=("a.py", "b.py", "auth.py")),
    "one-file-twice": Case(touches=("a.py", "./a.py")),
    **{f"for-{who}": Case((AUDIENCE,), audience=who) for who in PEOPLE},
    **{f"for-{who}": Case(audience=who) for who in ("agent", "me", "maintainers", "script")},
    "flag": Case((FLAG,), security=True),
    "16384-bytes": Case(category="summarize", prompt="x" * 16384),
    "16385-bytes": Case((LONG,), category="summarize", prompt="x" * 16385),
    "16384-bytes-of-8192-characters": Case(category="summarize", prompt="ü" * 8192),
    "16385-bytes-of-8193-characters": Case((LONG,), category="summarize", prompt="ü" * 8192 + "x"),
    "16384-characters-of-65536-bytes": Case((LONG,), category="summarize", prompt="\N{OWL}" * 16384),
    "words-of-a-prompt": Case(category="summarize", prompt="deploy the auth secret to production, human, --security"),
    "all-at-once": Case(
        (FILES, PATH, AUDIENCE, FLAG, GRAVE, LONG),
        category="release",
        prompt="x" * 20000,
        touches=("a.py", "auth.py"),
        audience="production",
        security=True,
    ),
}


@pytest.fixture(scope="module")
def simulator() -> Iterator[BackgroundSimulator]:
    """The module's model server."""
    with in_thread(SimulatorConfig(slots=64, loaded_limit=8)) as made:
        yield made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, simulator: BackgroundSimulator) -> Home:
    """A home with a server and without a pool."""
    return Home(tmp_path_factory.mktemp("policy"), simulated(simulator.url))


@pytest.fixture(scope="module")
def pool(home: Home) -> Iterator[Pool]:
    """Its ledger."""
    made = Pool(Settings(home=home.path))
    yield made
    made.db.close()


def sent(simulator: BackgroundSimulator) -> int:
    return int(simulator.stats()["requests"])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_anchor_offload(
    case: Case,
    home: Home,
    simulator: BackgroundSimulator,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    """Disqualified: exit 10, every reason on stderr, no output, no prompt sent. Else: exit 0 and the answer."""
    for name, value in home.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OFFLOAD_LOG", raising=False)
    before = sent(simulator)
    touches = ["--touches", *case.touches] if case.touches else []
    code = gated.run([*case.arguments, *touches])
    out, err = (stream.decode() for stream in capsysbinary.readouterr())
    last = home.telemetry()[-1]
    if case.reasons:
        assert (code, out, last["decision"], last["exit_code"]) == (10, "", "escalate", 10)
        assert err.startswith("ESCALATE: ")
        assert err == f"ESCALATE: {last['reason']}\n"
        said = last["reason"].split("; ")
        assert all(reason in words for words, reason in zip(said, case.reasons, strict=True))
        assert sent(simulator) == before
    else:
        assert (code, last["decision"], last["reason"]) == (0, "offload", "none"), err
        assert out.strip()
        assert sent(simulator) == before + 1


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_offload_run(case: Case, home: Home, pool: Pool) -> None:
    """Disqualified, and no cloud to go to: refused at once, exit 6, every reason on stderr. Else: queued."""
    if case.reasons:
        touches = [word for path in case.touches for word in ("--touches", path)]
        ran = offload(home.environment, "run", *case.arguments, *touches)
        assert (ran.code, ran.stdout) == (6, b"")
        assert all(reason in ran.stderr for reason in case.reasons)
        return
    line: dict[str, Any] = {"category": case.category, "prompt": case.prompt}
    said = Said(touches=case.touches, audience=case.audience, security=case.security)
    batch_id = submit_line(pool, orjson.dumps(line), name=None, priority=0, said=said)
    assert reading.one_job(pool.db, batch_id).state == "queued"
