"""Roles as services: the units, `offload service`, and what its files are for the other systems."""

from __future__ import annotations

import json
import plistlib
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from api.services import ROLES, Place, Role, manager, role
from tasks.errors import UsageError
from tests.support.cli import EXECUTABLE, Ran, executable, offload
from tests.support.needed import needed
from tests.support.pool import TestPool, clean_environment, running, simulated
from tests.support.ports import free_port
from tests.support.waiting import eventually
from workers.simulator import SimulatorConfig, in_thread

pytestmark = pytest.mark.slow

UNITS = Path(__file__).parents[2] / "ops" / "systemd"
ALL = [*ROLES.values(), role("worker:ollama")]

#: a service manager that only remembers what it was asked, and says yes
RECORDER = """#!/bin/sh
echo "$(basename "$0") $*" >>"{calls}"
[ "$1 $2" != "--user enable" ] || {{ mkdir -p "{wants}"; ln -sf /x "{wants}/$4"; }}
[ "$1 $2" != "--user disable" ] || rm -f "{wants}/$4"
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's home, with `offload` where pipx and uv put it."""
    made = tmp_path / "home"
    (made / ".local" / "bin").mkdir(parents=True)
    (made / ".local" / "bin" / "offload").symlink_to(EXECUTABLE)
    return made


def environment(home: Path, programs: Path | None = None) -> dict[str, str]:
    """A shell of that user's, in which of all programs there are only these."""
    path = {"PATH": str(programs)} if programs else {}
    return {n: v for n, v in clean_environment().items() if n != "XDG_CONFIG_HOME"} | {"HOME": str(home)} | path


@pytest.fixture
def calls(home: Path, tmp_path: Path) -> Path:
    """What the recorder, which is called systemctl, was asked."""
    (tmp_path / "programs").mkdir()
    program = tmp_path / "programs" / "systemctl"
    wants = home / ".config" / "systemd" / "user" / "default.target.wants"
    program.write_text(RECORDER.format(calls=tmp_path / "calls", wants=wants))
    program.chmod(0o755)
    return tmp_path / "calls"


def shell(home: Path, calls: Path, *arguments: str) -> Ran:
    given = environment(home) | {"PATH": f"{calls.parent / 'programs'}:/usr/bin:/bin"}
    return offload(given, "service", *arguments)


def test_the_units_in_ops_are_those_that_the_command_writes() -> None:
    """Who installs by hand and who lets the command do it get the same."""
    how, place = manager("linux"), Place(("%h/.local/bin/offload",), Path("%h"))
    written = {how.path(one, place).name: how.content(one, place) for one in ALL}
    assert {path.name: path.read_bytes() for path in UNITS.iterdir()} == written


def test_systemd_accepts_the_units(home: Path) -> None:
    """`systemd-analyze verify` has nothing to say about any of them."""
    program = needed("systemd-analyze", "systemd's")
    units = sorted(str(path) for path in UNITS.iterdir())
    units = [unit.replace("@.", "@ollama.") for unit in units]
    folder = home / ".config" / "systemd" / "user"
    folder.mkdir(parents=True)
    for path in UNITS.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    names = [str(folder / Path(unit).name) for unit in units]
    given = environment(home) | {"XDG_RUNTIME_DIR": str(home)}
    done = subprocess.run([program, "verify", "--user", "--man=no", *names], env=given, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[TestPool]:
    """A pool whose provider is called as the example's; no role runs yet."""
    with in_thread(SimulatorConfig(slots=16, loaded_limit=8)) as simulator:
        config = json.loads(json.dumps(simulated(simulator.url)).replace('"sim"', '"ollama"'))
        with running(tmp_path, config) as made:
            yield made


def exec_start(unit: str, home: Path) -> list[str]:
    """A unit's command as systemd would run it."""
    text = (UNITS / unit.replace("@ollama.", "@.")).read_text()
    line = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    return shlex.split(line.removeprefix("ExecStart=").replace("%h", str(home)).replace("%i", "ollama"))


def test_the_units_commands_run_the_roles(pool: TestPool, home: Path, tmp_path: Path) -> None:
    """Each single role's ExecStart starts it: a batch is done, the pages answer, and SIGTERM ends each in order."""
    ports = {"metrics": str(free_port()), "flower": str(free_port())}  # the usual ones may be somebody's here
    more = {f"offload-{name}.service": ["--port", port] for name, port in ports.items()}
    processes = {}
    for unit in ("offload-beat.service", "offload-worker@ollama.service", *more):
        command, given = exec_start(unit, home) + more.get(unit, []), environment(home) | pool.environment
        with (tmp_path / f"{unit}.log").open("wb") as log:
            processes[unit] = subprocess.Popen(command, env=given, stdout=log, stderr=log)
    try:
        assert pool.finished(pool.submit([{"category": "summarize", "prompt": "one job"}]), 120)
        for name, page in (("metrics", "healthz"), ("flower", "healthcheck")):
            url = f"http://127.0.0.1:{ports[name]}/{page}"
            eventually(lambda at=url: pool.cli("healthy", "url", at).code == 0, f"{url} answers", 60)  # type: ignore[misc]
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        ended = {unit: process.wait(60) for unit, process in processes.items()}
        assert ended == dict.fromkeys(processes, 0)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def test_the_pools_unit_runs_the_pool(home: Path, tmp_path: Path) -> None:
    """ExecStart of offload.service is `offload up`, which ends with status 0 on SIGTERM."""
    given = environment(home) | {"OFFLOAD_HOME": str(tmp_path / "pool")}
    (tmp_path / "pool").mkdir()
    with in_thread(SimulatorConfig()) as simulator:
        (tmp_path / "pool" / "offload.yaml").write_text(json.dumps(simulated(simulator.url)))
        with (tmp_path / "up.log").open("wb") as log:
            process = subprocess.Popen(exec_start("offload.service", home), env=given, stdout=log, stderr=log)
        try:
            file = tmp_path / "pool" / "run" / "pool.json"
            eventually(lambda: file.exists() and json.loads(file.read_bytes()).get("ready"), "the pool is up", 120)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()


def test_installing_starts_it_and_uninstalling_leaves_nothing(home: Path, calls: Path) -> None:
    """The units are written, enabled, told of, disabled and removed; a unit that another worker needs stays."""
    assert shell(home, calls, "install", "--user", "beat", "worker:ollama", "worker:vllm").code == 0
    folder = home / ".config" / "systemd" / "user"
    assert sorted(p.name for p in folder.glob("*.service")) == ["offload-beat.service", "offload-worker@.service"]
    assert shell(home, calls, "status", "--json").json == {
        "offload-beat.service": True,
        "offload-worker@ollama.service": True,
        "offload-worker@vllm.service": True,
    }
    assert shell(home, calls, "uninstall", "worker:vllm").code == 0
    assert (folder / "offload-worker@.service").exists()
    assert shell(home, calls, "uninstall", "--user").code == 0
    assert list(folder.glob("*.service")) == []
    assert "nothing is installed" in shell(home, calls, "status").stderr
    asked = calls.read_text().splitlines()
    assert "systemctl --user enable --now offload-worker@ollama.service" in asked
    assert "systemctl --user disable --now offload-beat.service" in asked


def test_what_the_service_will_not_have_is_named(home: Path, calls: Path) -> None:
    """Variables of this shell are not the service's: the command says where they go."""
    given = environment(home) | {"PATH": f"{calls.parent / 'programs'}:/usr/bin:/bin", "OFFLOAD_NODE": "here"}
    done = offload(given, "service", "install")
    assert done.code == 0
    assert "OFFLOAD_NODE" in done.stderr
    assert ".config/offload/environment" in done.stderr


def test_without_systemd_the_words_say_so(home: Path, tmp_path: Path) -> None:
    """Where no systemctl is, the files are written, and what is missing is named; they can be removed all the same."""
    (tmp_path / "none").mkdir()
    done = offload(environment(home, tmp_path / "none"), "service", "install")
    assert done.code == 1
    assert "systemctl is not here" in done.stderr
    assert offload(environment(home, tmp_path / "none"), "service", "uninstall").code == 0
    assert list((home / ".config" / "systemd" / "user").glob("*.service")) == []


def test_what_cannot_be_stopped_is_not_removed(home: Path, calls: Path) -> None:
    """Its unit stays and is named, with the manager's words and status 1; once it can be stopped it goes."""
    assert shell(home, calls, "install", "beat", "metrics").code == 0
    program = calls.parent / "programs" / "systemctl"
    works = program.read_text()
    program.write_text(
        works.replace(
            "\n", '\n[ "$*" != "--user disable --now offload-beat.service" ] || { echo no >&2; exit 1; }\n', 1
        )
    )
    done = shell(home, calls, "uninstall")
    assert done.code == 1
    assert "offload-beat.service is not stopped: systemctl --user disable --now offload-beat.service: no" in done.stderr
    assert "offload-beat.service is removed" not in done.stderr
    assert "offload-metrics.service is removed" in done.stderr
    assert "not removed: offload-beat.service" in done.stderr
    folder = home / ".config" / "systemd" / "user"
    assert [p.name for p in folder.glob("*.service")] == ["offload-beat.service"]
    assert str(folder / "offload-beat.service") in done.stderr
    program.write_text(works)
    assert shell(home, calls, "uninstall").code == 0
    assert list(folder.glob("*.service")) == []


def test_a_session_without_systemd_is_explained(home: Path) -> None:
    """A systemctl that reaches no user manager is quoted, with what to do."""
    needed("systemctl", "systemd's")
    given = environment(home) | {"DBUS_SESSION_BUS_ADDRESS": "unix:path=/nowhere", "XDG_RUNTIME_DIR": "/nowhere"}
    done = executable(given, "service", "install", "--user", "beat")
    assert done.code == 1
    assert "enable-linger" in done.stderr


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_macos_gets_an_agent(one: Role, home: Path) -> None:
    """A property list that runs the role's command, again when it fails, and gives it time to stop."""
    word = f"worker:{one.provider}" if one.provider else one.name
    assert offload(clean_environment(), "service", "install", word, "--for", "macos", "--to", str(home)).code == 0
    path = manager("darwin").path(one, Place((), home))
    found = plistlib.loads(path.read_bytes())
    assert found["ProgramArguments"][4:] == [EXECUTABLE, *one.arguments]
    assert found["Label"] == path.stem
    assert found["RunAtLoad"] is True
    assert found["KeepAlive"] == (True if one.lasts else {"SuccessfulExit": False})
    assert found["ExitTimeOut"] >= 60


def test_an_agent_reads_the_environment_file(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its variables reach the role as they are written there, nothing in it is run, and without it the role starts."""
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    place = Place(("/usr/bin/env", "-0"), home)
    words = plistlib.loads(manager("darwin").content(Role("one", (), "a test's"), place))["ProgramArguments"]

    def got() -> dict[str, str]:
        done = subprocess.run(words, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True)
        return dict(line.split("=", 1) for line in done.stdout.split("\0") if line)

    before = got()
    file = home / ".config" / "offload" / "environment"
    file.parent.mkdir(parents=True)
    file.write_text(
        "# OFFLOAD_NO=1\n; other\n\nno variable\n9A=1\nA B=1\n$(touch ran)=1\n=1\n"
        f"OFFLOAD_A=a b=$HOME `touch {tmp_path}/ran` $(touch {tmp_path}/ran) \\n\n"
        "OFFLOAD_B=\"quoted's\"\nOFFLOAD_C='x y'\nOFFLOAD_D=\nOFFLOAD_E=the last"
    )
    assert {name: value for name, value in got().items() if name not in before} == {
        "OFFLOAD_A": f"a b=$HOME `touch {tmp_path}/ran` $(touch {tmp_path}/ran) \\n",
        "OFFLOAD_B": "quoted's",
        "OFFLOAD_C": "x y",
        "OFFLOAD_D": "",
        "OFFLOAD_E": "the last",
    }
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_windows_gets_a_task(one: Role, home: Path) -> None:
    """A definition that Windows' schema knows: at log-on, once, without end, the role's command."""
    word = f"worker:{one.provider}" if one.provider else one.name
    assert offload(clean_environment(), "service", "install", word, "--for", "windows", "--to", str(home)).code == 0
    content = manager("win32").path(one, Place((), home)).read_bytes()
    assert content.startswith((b"\xff\xfe", b"\xfe\xff"))
    task = ElementTree.fromstring(content.decode("utf-16").partition("?>")[2])
    names = {"t": "http://schemas.microsoft.com/windows/2004/02/mit/task"}
    assert task.tag == f"{{{names['t']}}}Task"
    assert task.findtext("t:Actions/t:Exec/t:Command", namespaces=names) == EXECUTABLE
    assert (task.findtext("t:Actions/t:Exec/t:Arguments", namespaces=names) or "").split() == list(one.arguments)
    assert task.findtext("t:Settings/t:ExecutionTimeLimit", namespaces=names) == "PT0S"
    trigger = task.find("t:Triggers/t:LogonTrigger", names)
    assert trigger is not None
    assert [one.tag.partition("}")[2] for one in trigger] == ["Enabled", "UserId"], "the schema's order"
    assert trigger.findtext("t:UserId", namespaces=names) == home.name


def test_a_role_is_known_or_refused() -> None:
    """A word that is no role, a provider's name that could be a path: both are usage errors."""
    for word in ("gpu", "worker", "worker:", "worker:../x", "worker:a b", "beat:x"):
        with pytest.raises(UsageError):
            role(word)


def test_a_program_with_odd_letters_is_quoted(home: Path) -> None:
    """Spaces, percent signs and quotes in the program's path reach ExecStart as themselves."""
    content = manager("linux").content(ROLES["beat"], Place(('/a b/100%/"x"/offload',), home)).decode()
    assert 'ExecStart="/a b/100%%/\\"x\\"/offload" beat' in content
