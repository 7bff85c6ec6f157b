"""`offload up`: comes up, holds every role, and leaves nothing behind, however it ends."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import psutil
import pytest
import redis
import yaml
from redis.backoff import NoBackoff
from redis.retry import Retry

from api.embedded.state import running_pid
from tasks.settings import Settings
from tests.support.cli import Ran, examined, executable, jsonl, offload, started
from tests.support.gguf import tiny_model
from tests.support.pool import HURRY, clean_environment
from tests.support.processes import end_all, ended, of_folder, playing
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow


class Home:
    """A folder for `offload up`, and what there is of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "home"
        self.path.mkdir()
        self.environment = clean_environment() | {
            "OFFLOAD_HOME": str(self.path),
            "OFFLOAD_TIME_DIVISOR": str(HURRY),
            "OFFLOAD_DRAIN_S": "1",
        }
        self.pool_file = self.path / "run" / "pool.json"

    @property
    def pid(self) -> int | None:
        """The supervisor's."""
        return running_pid(Settings(home=self.path))

    @property
    def pool(self) -> dict[str, Any]:
        """What the pool says of itself; empty while it does not."""
        try:
            found: dict[str, Any] = json.loads(self.pool_file.read_bytes())
        except OSError:
            return {}
        return found

    def cli(self, *arguments: str, stdin: bytes = b"") -> Ran:
        """A command in this process."""
        return offload(self.environment, *arguments, stdin=stdin)

    def up(self, *options: str) -> Ran:
        """`offload up --detach`."""
        return executable(self.environment, "up", "--detach", *options)

    @contextmanager
    def foreground(self) -> Iterator[subprocess.Popen[bytes]]:
        """`offload up` as in a terminal, once it is ready."""
        with started(
            self.environment,
            "up",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's `&` would have it ignored
        ) as process:
            try:
                eventually(lambda: self.pool.get("ready") and self.pool["pid"] == process.pid, "the pool is up", 90)
                yield process
            finally:
                process.kill()

    def gone(self) -> bool:
        """Whether no process of it lives."""
        return not of_folder(self.path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home for all tests that leave its pool as they found it."""
    home = Home(tmp_path_factory.mktemp("up"))
    yield home
    executable(home.environment, "down")
    end_all(home.path)


@pytest.fixture
def home(shared: Home) -> Home:
    """The shared home, its pool up on the simulator."""
    if shared.pid is None:
        ran = shared.up("--simulator", "--monitor")
        assert ran.code == 0, ran.stderr
        assert ran.stdout == b""
        assert ran.stderr.startswith("model server: ")
        assert "offload down" in ran.stderr
        assert "flower: http://127.0.0.1:" in ran.stderr
        assert str(shared.path / "run" / "flower.auth") in ran.stderr
    return shared


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Home]:
    """A home of the test's own, with no pool."""
    made = Home(tmp_path)
    yield made
    end_all(made.path)


def test_up_is_a_whole_pool(home: Home) -> None:
    """After `up --detach` doctor finds nothing and a job is run; the log is in the home."""
    examined(home.cli)
    ran = home.cli("run", "summarize", "A short note.", "--timeout", "60")
    assert ran.code == 0, ran.stderr
    assert "the pool is up" in (home.path / "logs" / "pool.log").read_text()


def test_up_twice_says_so(home: Home) -> None:
    """A second `up` of the same home, detached or not, is exit 1 and names the pid; the first goes on."""
    pid = home.pid
    for detach in ((), ("--detach",)):
        ran = home.cli("up", *detach)
        assert ran.code == 1
        assert f"already (pid {pid})" in ran.stderr
    assert home.pid == pid


def test_secrets_stay_with_the_owner(home: Home) -> None:
    """pool.json, the ledger and the Redis configuration are the owner's alone, and no command line has the password."""
    password = urlsplit(home.pool["redis_url"]).password
    assert password is not None
    assert len(password) > 20
    for path in (home.pool_file, home.path / "ledger.db", home.path / "run" / "redis.conf"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    for name, mode in {"run": 0o700, "redis": 0o700, "logs": 0o700, "ledger.db": 0o600, "ledger.db-wal": 0o600}.items():
        assert stat.S_IMODE((home.path / name).stat().st_mode) == mode, name
    shown = "\n".join(" ".join(p.cmdline()) for p in of_folder(home.path))
    assert "offload" in shown or "api" in shown
    assert password not in shown
    assert password not in (home.path / "logs" / "pool.log").read_text()


def test_redis_listens_on_loopback_and_wants_the_password(home: Home) -> None:
    """The embedded Redis answers nobody without the password, and nobody elsewhere; its file is on."""
    url = home.pool["redis_url"]
    port = urlsplit(url).port or 0
    with (
        redis.Redis("127.0.0.1", port, retry=Retry(NoBackoff(), 0)) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()
    with redis.Redis.from_url(url, decode_responses=True) as ours:
        assert ours.config_get("bind")["bind"] == "127.0.0.1"
        assert ours.config_get("appendonly")["appendonly"] == "yes"
        assert ours.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"


def test_killed_roles_are_started_again(home: Home) -> None:
    """kill -9 of worker, beat and Redis at once: each comes back, and a batch submitted before ends whole."""
    jobs = [{"id": f"j{i}", "category": "summarize", "prompt": f"Note {i}. [[sim:delay=0.3]]"} for i in range(60)]
    batch = home.cli("submit", "-", stdin=jsonl(jobs)).text
    eventually(lambda: home.cli("status", batch, "--json").json["done"] > 0, "it runs")
    killed = _roles(home)
    assert len(killed) == 3
    for process in killed:
        process.kill()
    ran = home.cli("wait", batch, "--timeout", "90")
    assert ran.code == 0, ran.stderr
    assert [r["id"] for r in home.cli("results", batch, "--state", "done").lines] == [j["id"] for j in jobs]
    again = eventually(lambda: found if len(found := _roles(home)) == 3 else None, "each is back", 60)
    assert again is not None
    assert not {p.pid for p in again} & {p.pid for p in killed}


def _roles(home: Home) -> list[psutil.Process]:
    roles = ("worker", "--provider"), ("beat",), ("-server",)
    return [one for words in roles for one in playing(home.path, *words)]


def test_a_killed_leash_takes_its_role_with_it(home: Home) -> None:
    """kill -9 of what holds a role ends the role too, and both come back."""
    (worker,) = playing(home.path, "worker", "--provider")
    leash = worker.parent()
    assert leash is not None
    assert any("leash.py" in part for part in leash.cmdline())
    leash.kill()
    eventually(lambda: ended(worker.pid), "the role is gone")
    eventually(lambda: playing(home.path, "worker", "--provider"), "it is back")


def test_the_monitor_is_a_role_like_others_and_nobody_waits_for_it(home: Home) -> None:
    """Flower opens with the password whose place `up` said; frozen it harms no job, killed it is back, the same."""
    auth = home.path / "run" / "flower.auth"
    address = home.pool["monitor"]["flower"]
    eventually(lambda: auth.exists() and _opens(address, auth.read_text().strip()), "Flower opens", 60)
    assert not _opens(address, "offload:wrong")
    flower = eventually(lambda: next(iter(playing(home.path, "flower", "--port")), None), "Flower runs")
    assert flower is not None
    assert auth.read_text().split(":")[1].strip() not in " ".join(flower.cmdline())
    flower.suspend()
    ran = home.cli("run", "summarize", "A short note.", "--timeout", "60")
    assert ran.code == 0, ran.stderr
    with suppress(psutil.NoSuchProcess):  # on a busy machine the supervisor was first, and found it frozen
        flower.kill()
    before = auth.read_text()
    eventually(lambda: _opens(address, before.strip()), "Flower is back", 60)


def _opens(address: str, auth: str) -> bool:
    request = Request(address, headers={"Authorization": f"Basic {b64encode(auth.encode()).decode()}"})
    try:
        with urlopen(request, timeout=5) as reply:
            return bool(reply.status == 200)
    except HTTPError as error:
        error.close()
    except OSError:
        pass
    return False


def test_down_stops_everything(home: Home) -> None:
    """`down` leaves no process and no pool.json, says so, and a second one says that nothing runs."""
    ran = home.cli("down")
    assert (ran.code, ran.stderr.strip()) == (0, "the pool is down")
    eventually(home.gone, "every process is gone", 10)
    assert not home.pool_file.exists()
    assert home.cli("down", "--json").json == {"stopped": None}
    assert "no pool is running" in home.cli("down").stderr


def test_a_killed_supervisor_leaves_nothing_running(own: Home, tmp_path: Path) -> None:
    """kill -9 of the supervisor ends every role, llama.cpp too; a new `up` works, and Ctrl-C ends that in order."""
    model = tiny_model(tmp_path)
    config = {"providers": [{"kind": "gguf", "path": str(model), "slots": 1, "context": 512}]}
    (own.path / "offload.yaml").write_text(yaml.safe_dump(config))
    with own.foreground() as supervisor:
        eventually(lambda: playing(own.path, "gguf_server"), "llama.cpp runs")
        assert len(playing(own.path, "api", "worker")) == 1
        supervisor.kill()
        eventually(own.gone, "every process is gone", 30)
    assert own.pid is None
    batch = own.cli("submit", "-", stdin=jsonl([{"category": "chat", "prompt": "Hello."}])).text
    with own.foreground() as supervisor:
        assert own.cli("wait", batch, "--timeout", "60").code == 0
        supervisor.send_signal(signal.SIGINT)
        assert supervisor.wait(timeout=60) == 0
        assert own.gone(), of_folder(own.path)
    assert not own.pool_file.exists()


def test_what_cannot_work_is_said_before_anything_starts(own: Home) -> None:
    """A fault in offload.yaml is exit 2 with its line, and starts no process."""
    (own.path / "offload.yaml").write_text("providers:\n  - {name: x, kind: olama, url: http://127.0.0.1:1}\n")
    for options in ((), ("--detach",)):
        ran = own.cli("up", *options)
        assert ran.code == 2
        assert "offload.yaml:2: providers.0.kind" in ran.stderr
    assert own.gone()
    assert not own.pool_file.exists()


def _a_file(path: Path) -> Path:
    (path / "file").touch()
    return path / "file" / "home"


def _read_only(path: Path) -> Path:
    if os.geteuid() == 0:
        pytest.skip("root writes whatever the mode says")
    (path / "locked").mkdir(mode=0o500)
    return path / "locked" / "home"


@pytest.mark.parametrize("place", [_a_file, _read_only])
@pytest.mark.parametrize("options", [(), ("--detach",)], ids=["foreground", "detached"])
def test_a_home_that_cannot_be_written_is_a_clear_error(
    place: Callable[[Path], Path], options: tuple[str, ...], tmp_path: Path
) -> None:
    """OFFLOAD_HOME in a place that cannot be: exit 1, and the path is named."""
    home = place(tmp_path)
    ran = offload(clean_environment() | {"OFFLOAD_HOME": str(home)}, "up", *options)
    assert ran.code == 1
    assert str(home) in ran.stderr
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
