"""offload up, offload down"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from api.commands.output import print_json, say
from api.embedded.state import read_pool, running_pid
from api.embedded.supervisor import START_S, STOP_GRACE_S, Supervisor
from api.logs import configure_logs
from tasks.config import load_registry, says_servers
from tasks.errors import PoolError
from tasks.settings import Settings, load_settings

#: bytes of a log that is kept as pool.log.1 when the pool starts again
LOG_KEPT_BYTES = 10 * 1024 * 1024


@click.command()
@click.option("--detach", is_flag=True, help="In the background; `offload down` stops it.")
@click.option(
    "--simulator",
    "simulate",
    is_flag=True,
    help="Use the shipped simulator when no model server here serves every class.",
)
@click.option("--monitor", is_flag=True, help="Run Flower and /metrics as well, on loopback; say where they are.")
@click.option("--json", "as_json", is_flag=True, help="With --detach: print JSON.")
def up(detach: bool, simulate: bool, monitor: bool, as_json: bool) -> None:
    """Run the whole pool on this machine until Ctrl-C: Redis, beat, one worker per provider, the HTTP API."""
    if as_json and not detach:
        raise click.UsageError("--json needs --detach")
    settings = load_settings()
    registry = load_registry(settings)  # a fault in offload.yaml shows here, before anything starts
    if simulate and says_servers(settings):
        say(f"--simulator is not used: {registry.source} says which model servers there are")
    if (pid := running_pid(settings)) is not None:
        raise PoolError(f"a pool is running in {settings.home} already (pid {pid}); `offload down` stops it")
    if detach:
        _detach(settings, simulate, monitor, as_json)
        return
    configure_logs(settings)
    Supervisor(settings, simulate, monitor).run()


def _detach(settings: Settings, simulate: bool, monitor: bool, as_json: bool) -> None:
    log = _log_file(settings)
    offset = log.stat().st_size
    flags = [flag for flag, on in (("--simulator", simulate), ("--monitor", monitor)) if on]
    command = [sys.executable, "-P", "-m", "api", "up", *flags]
    with log.open("ab") as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env=os.environ | {"OFFLOAD_HOME": str(settings.home)},
        )
    until = time.monotonic() + START_S + STOP_GRACE_S
    while child.poll() is None and time.monotonic() < until:
        pool = read_pool(settings)
        if pool.get("ready") and pool.get("pid") == child.pid:
            _say_up(settings, child.pid, as_json)
            return
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    tail = log.read_bytes()[offset:][-2000:].decode(errors="replace")
    raise PoolError(f"the pool did not come up; from {log}:\n{tail}")


def _log_file(settings: Settings) -> Path:
    folder = settings.home / "logs"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = folder / "pool.log"
    if log.exists() and log.stat().st_size > LOG_KEPT_BYTES:
        log.replace(folder / "pool.log.1")
    log.touch(mode=0o600)
    return log


def _say_up(settings: Settings, pid: int, as_json: bool) -> None:
    pool = read_pool(settings)
    servers, monitor, api = pool.get("servers", ""), pool.get("monitor", {}), pool.get("api", "")
    if as_json:
        print_json({"pid": pid, "home": str(settings.home), "servers": servers, "api": api, "monitor": monitor})
        return
    say(f"model server: {servers}")
    say(f"API: {api}/v1")
    if flower := monitor.get("flower"):
        say(f"flower: {flower} (user and password: {settings.flower_auth_place})")
    if metrics := monitor.get("metrics"):
        say(f"metrics: {metrics}")
    say(f"the pool is up (pid {pid}), its state in {settings.home}; stop it with: offload down")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def down(as_json: bool) -> None:
    """Stop the pool; calls in flight get OFFLOAD_DRAIN_S seconds, all other jobs wait for the next `offload up`."""
    settings = load_settings()
    pid = running_pid(settings)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        _wait_for_end(settings)
    if as_json:
        print_json({"stopped": pid})
    else:
        say("no pool is running here" if pid is None else "the pool is down")


def _wait_for_end(settings: Settings) -> None:
    until = time.monotonic() + 2 * (settings.drain_s + STOP_GRACE_S) + 5
    while running_pid(settings) is not None:
        if time.monotonic() > until:
            raise PoolError("the pool does not stop; kill its supervisor: everything else ends with it")
        time.sleep(0.05)
