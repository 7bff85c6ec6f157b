"""compose.yaml without Docker: each service's own command, environment and health check, as a process.

A container's address is an address of the loopback of its own, so that ports stay those of the file; its folders are
folders of the test's.  What an image brings, its entry point and its programs, the test brings instead.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tests.support.waiting import eventually

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?:(:[-?])([^}]*))?\})")


class Refused(Exception):
    """A variable that the file needs is not set; its words are the file's."""


def read(path: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """A compose file with its variables put in; raises Refused."""

    def value(found: re.Match[str]) -> str:
        name, operator, words = found.groups()
        if name is None:
            return "$"
        given = environment.get(name, "")
        if operator == ":?" and not given:
            raise Refused(f"{name}: {words}")
        return given or (words if operator == ":-" else "") or ""

    def put_in(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: put_in(inner) for key, inner in node.items()}
        if isinstance(node, list):
            return [put_in(inner) for inner in node]
        return _VARIABLE.sub(value, node) if isinstance(node, str) else node

    return dict(put_in(yaml.safe_load(path.read_text())))


def merged(base: Any, more: Any) -> Any:
    """A second file over a first, as compose reads them: lists of mounts and ports grow, other values are replaced."""
    if not isinstance(base, dict) or not isinstance(more, dict):
        return more
    grow = {key for key in ("volumes", "ports", "networks", "tmpfs") if isinstance(base.get(key), list)}
    both = {k: [*base[k], *more[k]] if k in grow else merged(base[k], more[k]) for k in base.keys() & more.keys()}
    return {**base, **more, **both}


def env_file(text: str) -> dict[str, str]:
    """The variables of an .env file."""
    lines = [line for line in text.splitlines() if "=" in line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def new_env(project: Path) -> subprocess.CompletedProcess[str]:
    """Run ops/new-env.sh in a folder that has what it reads."""
    (project / "ops").mkdir(exist_ok=True)
    for name in ("ops/new-env.sh", ".env.example"):
        shutil.copy(ROOT / name, project / name)
    script = str(project / "ops" / "new-env.sh")
    return subprocess.run(["sh", script], capture_output=True, text=True, check=True)


def fresh_env(**more: str) -> dict[str, str]:
    """An .env as ops/new-env.sh writes it."""
    with tempfile.TemporaryDirectory() as folder:
        new_env(Path(folder))
        return env_file((Path(folder) / ".env").read_text()) | more


def at_simulator(text: str, url: str) -> str:
    """An offload.yaml whose providers are all the simulator."""
    config: dict[str, Any] = yaml.safe_load(text)
    for provider in config["providers"]:
        provider["url"] = url
    return yaml.safe_dump(config)


def image_environment() -> dict[str, str]:
    """What ops/Dockerfile's last stage sets, but for PATH."""
    text = (ROOT / "ops" / "Dockerfile").read_text().rpartition("\nFROM ")[2].replace("\\\n", " ")
    words = [w for line in re.findall(r"^ENV (.*)$", text, re.MULTILINE) for w in shlex.split(line)]
    return {name: value for name, _, value in (w.partition("=") for w in words) if name != "PATH"}


def image_entry_point() -> list[str]:
    """The image's entry point."""
    return list(yaml.safe_load(re.findall(r"^ENTRYPOINT (.*)$", (ROOT / "ops" / "Dockerfile").read_text(), re.M)[-1]))


def seconds(text: str) -> float:
    """A duration as compose writes it."""
    return sum(float(n) * {"s": 1, "m": 60, "h": 3600}[unit] for n, unit in re.findall(r"([\d.]+)([smh])", text))


class Container:
    """One service as a process. entry: what its image begins its command with; more: words put after it."""

    def __init__(
        self,
        pool: Composed,
        name: str,
        service: Mapping[str, Any],
        address: str,
        entry: Sequence[str] = (),
        more: Sequence[str] = (),
        prefix: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self.name, self.service, self.address = name, service, address
        self._pool = pool
        self._folders: dict[str, Path] = {}
        self._folders = dict(self._mounts(pool.folder / name))
        ours = service["image"].startswith("offload:")
        first = service.get("entrypoint", image_entry_point() if ours else entry)
        self.argv = [*prefix, *(self.translated(w) for w in [*first, *service.get("command", ())]), *more]
        inside = image_environment() if ours else {}
        inside |= {k: str(v) for k, v in service.get("environment", {}).items()}
        self.environment = {k: self.translated(v) for k, v in inside.items()} | {
            "PATH": f"{pool.programs}:{os.environ['PATH']}",
            "HOME": str(pool.folder),
        }
        self._options = options
        self.log = pool.folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def translated(self, text: str) -> str:
        """A text of the container's inside as it is true outside: folders, its own address, others' names."""
        targets = "|".join(map(re.escape, sorted(self._folders, key=len, reverse=True)))
        if targets:
            text = re.sub(rf"(?<![\w.-])({targets})(?=[/:'\"\s]|$)", lambda m: str(self._folders[m[1]]), text)
        text = re.sub(r"\b(0\.0\.0\.0|127\.0\.0\.1|localhost)\b", self.address, text)
        return re.sub(r"(?<=[@/\"'])([a-z][a-z-]*)(?=:\d+(?:[/'\"\s]|$))", lambda m: self._pool.host(m[1]), text)

    def _mounts(self, folder: Path) -> Iterator[tuple[str, Path]]:
        for one in self.service.get("tmpfs", ()):
            target = one.partition(":")[0]
            made = self._made(folder / "tmpfs" / target.strip("/").replace("/", "-"))
            made.chmod(0o1777)
            yield target, made
        for one in self.service.get("volumes", ()):
            if isinstance(one, str):
                source, target = one.split(":")[:2]
            else:
                source, target = one["source"], one["target"]
            if source.startswith((".", "/")):
                there = (self._pool.project / source).resolve()
                there = next(
                    (to / there.relative_to(of) for of, to in self._pool.places.items() if of in there.parents), there
                )
                yield target, self._copied(there, folder / "binds" / target.strip("/").replace("/", "-"))
            else:
                yield target, self._made(self._pool.folder / "volumes" / source)

    @staticmethod
    def _made(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _copied(self, source: Path, to: Path) -> Path:
        """What is bound from the tree, with names and addresses as they are here."""
        to.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, to, dirs_exist_ok=True)
        else:
            shutil.copy(source, to)
        for file in [to] if to.is_file() else [p for p in to.rglob("*") if p.is_file()]:
            name = source.name if file == to else file.name
            file.write_text(self._pool.edited(name, self.translated(file.read_text())))
        return to

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._options
            )

    def check(self) -> subprocess.CompletedProcess[bytes]:
        """Run its health check once."""
        kind, *words = self.service["healthcheck"]["test"]
        argv = ["sh", "-c", *words] if kind == "CMD-SHELL" else words
        limit = seconds(self.service["healthcheck"]["timeout"])
        argv = [self.translated(word) for word in argv]
        return subprocess.run(argv, env=self.environment, capture_output=True, timeout=limit, check=False)

    def wait_until(self, condition: str) -> None:
        """Wait for what `depends_on` asks."""
        assert self.process is not None
        if condition == "service_completed_successfully":
            assert self.process.wait(60) == 0, self.words()
        else:
            eventually(self._healthy, f"{self.name} is healthy", 180, every_s=0.2)

    def _healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.words()
        try:
            return self.check().returncode == 0
        except subprocess.TimeoutExpired:
            return False

    def stop(self) -> int:
        """Its stop signal; the status it ends with inside its grace."""
        assert self.process is not None
        grace = seconds(self.service.get("stop_grace_period", "10s"))
        self.process.send_signal(signal.Signals[self.service.get("stop_signal", "SIGTERM")])
        return self.process.wait(grace)

    def words(self) -> str:
        """What it said."""
        return f"{self.name}: {self.log.read_text()[-3000:]}"


class Composed:
    """The services of compose files, of the profiles given, that the test starts.

    places: folder of the tree that the files bind -> the folder that stands in for it.
    """

    def __init__(
        self,
        folder: Path,
        paths: Sequence[Path],
        environment: Mapping[str, str],
        places: Mapping[Path, Path] | None = None,
    ) -> None:
        self.folder = folder
        self.project = paths[0].parent
        self.places = dict(places or {})
        self.file = functools.reduce(merged, (read(path, environment) for path in paths))
        profiles = set(environment.get("COMPOSE_PROFILES", "").split(","))
        there = self.file["services"].items()
        self.services = {n: s for n, s in there if not s.get("profiles") or profiles & set(s["profiles"])}
        self._net = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
        self._hosts: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.programs = Path(tempfile.mkdtemp(prefix="offload-programs-"))  # where also `nobody` finds them
        self.programs.chmod(0o755)
        self.edits: dict[str, Any] = {}
        self.running: dict[str, Container] = {}

    def host(self, name: str) -> str:
        """The address of a service; other names are left as they are."""
        if name in self._hosts:
            return self._hosts[name]
        if name not in self.file["services"]:
            return name
        return self._hosts.setdefault(name, f"{self._net}.{list(self.file['services']).index(name) + 10}")

    def at(self, name: str, address: str) -> None:
        """A service that the test plays itself, at this address."""
        self._hosts[name] = address

    def edited(self, name: str, text: str) -> str:
        """A bound file as the test wants it."""
        return str(self.edits[name](text)) if name in self.edits else text

    def program(self, name: str, path: str) -> None:
        """A program of an image, by where it is here."""
        (self.programs / name).symlink_to(path)

    def container(self, name: str, **options: Any) -> Container:
        """A service, not yet started."""
        self.running[name] = Container(self, name, self.services[name], self.host(name), **options)
        return self.running[name]

    def start(self, name: str, **options: Any) -> Container:
        """Start a service as soon as what it depends on is as it asks."""
        for other, wanted in self.services[name].get("depends_on", {}).items():
            self.running[other].wait_until(wanted["condition"])
        made = self.running.get(name) or self.container(name, **options)
        made.start()
        return made

    def do(self, line: str, folder: Path, **environment: str) -> None:
        """A line of `docker compose exec` or `run` as the docs have it, in a folder; its command has to succeed."""
        words = shlex.split(line, comments=True)
        words, files = [w for w in words if w[0] not in "<>"], {w[0]: folder / w[1:] for w in words if w[0] in "<>"}
        entry = [words.pop(i + 1) for i, w in enumerate(words) if w == "--entrypoint"]
        name, *command = [w for w in words[3:] if w not in ("-T", "--rm", "--no-deps", "--entrypoint")]
        one = self.running.get(name) or self.container(name)
        argv = [*entry, *map(one.translated, command)]
        with (
            open(files.get("<", os.devnull), "rb") as given,
            open(files.get(">", os.devnull), "wb") as kept,
        ):
            done = subprocess.run(
                argv, env=one.environment | environment, stdin=given, stdout=kept, stderr=subprocess.PIPE
            )
        assert done.returncode == 0, f"{line}: {done.stderr.decode()}"

    def stop(self) -> dict[str, tuple[int, float]]:
        """End all that still run, those that depend on others first: status and seconds of each."""
        ended = {}
        for name in reversed(self.running):
            one = self.running[name]
            if one.process is not None and one.process.poll() is None:
                began = time.monotonic()
                ended[name] = (one.stop(), time.monotonic() - began)
        return ended

    def close(self) -> None:
        """kill -9 of whatever is left."""
        for one in self.running.values():
            if one.process is not None and one.process.poll() is None:
                one.process.kill()
                one.process.wait()
        shutil.rmtree(self.programs, ignore_errors=True)


class Published:
    """What Docker does with `ports`: listens at the host's address and passes on to the container's."""

    def __init__(self, containers: Iterable[Container]) -> None:
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="ports", daemon=True)
        self._thread.start()
        for one in containers:
            for port in one.service.get("ports", ()):
                host, published, inside = port.rsplit(":", 2)
                listening = asyncio.start_server(_passes_on(one.address, int(inside)), host, int(published))
                self._servers.append(self._do(listening))

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def close(self) -> None:
        """Listen no more; every connection ends."""
        self._do(_end_all(self._servers))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _passes_on(
    host: str, port: int
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
            writers.append(far_writer)
            await asyncio.gather(_pass(reader, far_writer), _pass(far_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for one in writers:
                one.transport.abort()

    return connected


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.transport.abort()


async def _end_all(servers: Iterable[asyncio.Server]) -> None:
    for server in servers:
        server.close()
    mine = asyncio.current_task()
    others = [task for task in asyncio.all_tasks() if task is not mine]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0)  # what was aborted says so in the loop's next turn
