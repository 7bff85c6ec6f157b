"""offload service"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from api.commands.output import Group, print_json, say, table
from api.services import Manager, Place, Role, environment_file, manager, role, this_program
from tasks.errors import PoolError, UsageError

#: platforms that files can be written for, as --for names them -> as Python does
PLATFORMS = {"linux": "linux", "macos": "darwin", "windows": "win32"}

_USER = click.option("--user", is_flag=True, default=True, help="For this user, which is all there is.")


@click.group(cls=Group)
def service() -> None:
    """Roles that start with your session and stay: systemd, launchd, or a scheduled task.

    ROLE is pool (all of `offload up`), beat, api, flower, metrics, or worker:PROVIDER.
    """


@service.command()
@click.argument("roles", nargs=-1, metavar="[ROLE]…")
@_USER
@click.option("--for", "platform", type=click.Choice(list(PLATFORMS)), help="Write files only, for this system.")
@click.option("--to", type=click.Path(file_okay=False, path_type=Path), help="With --for: the user's home there.")
def install(roles: tuple[str, ...], user: bool, platform: str | None, to: Path | None) -> None:
    """Write each ROLE's file (default: pool), start it, and have it started with each session."""
    if to is not None and platform is None:
        raise click.UsageError("--to goes with --for")
    wanted = [role(word) for word in roles or ("pool",)]
    place = Place(this_program(), (to or Path.home()).absolute())
    how = manager(PLATFORMS[platform] if platform else sys.platform)
    for one in wanted:
        path = how.path(one, place)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(how.content(one, place))
        except OSError as error:
            raise UsageError(f"{path} cannot be written ({error.strerror})") from None
        say(f"wrote {path}")
    if platform is None:
        _say_more(place)
        for one in wanted:
            _start(how, one, place)
            say(f"{how.name(one)} runs, and starts with each session")


def _start(how: Manager, one: Role, place: Place) -> None:
    if shutil.which(how.program) is not None:
        for command in how.replaces(one, place):
            subprocess.run(command, capture_output=True)
    _run(how, how.enable(one, place), f"{how.name(one)} is not started")


@service.command()
@click.argument("roles", nargs=-1, metavar="[ROLE]…")
@_USER
def uninstall(roles: tuple[str, ...], user: bool) -> None:
    """Stop each ROLE (default: all that are installed) and remove its file."""
    how, place = manager(), Place(this_program(), Path.home())
    gone = [role(word) for word in roles] or how.installed(place)
    if shutil.which(how.program) is None:
        say(f"{how.program} is not here, so nothing that it started runs")
    left = [how.name(one) for one in gone if not _remove(how, one, place)]
    if not gone:
        say("nothing is installed")
    if left:
        raise PoolError(f"not removed: {', '.join(left)}; mend what is said above, then uninstall again")


def _remove(how: Manager, one: Role, place: Place) -> bool:
    """Stop a role and remove its file; where it cannot be stopped both stay, and why is said. Whether it is gone."""
    path = how.path(one, place)
    if not path.exists():
        say(f"{how.name(one)} is not installed")
        return True
    if shutil.which(how.program) is not None:
        try:
            _run(how, how.disable(one, place), f"{how.name(one)} is not stopped")
        except PoolError as error:
            if _said(how, how.asks(one, place)) is not None:
                say(f"{error}\nits file stays: {path}")
                return False
    if not _shared(how, one, place):
        path.unlink(missing_ok=True)
    say(f"{how.name(one)} is removed")
    return True


def _shared(how: Manager, one: Role, place: Place) -> bool:
    """Whether another installed role has the same file, as workers of systemd do."""
    path = how.path(one, place)
    return any(how.path(other, place) == path for other in how.installed(place) if other != one)


@service.command()
@_USER
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(user: bool, as_json: bool) -> None:
    """Which roles are installed, and whether each runs."""
    how, place = manager(), Place(this_program(), Path.home())
    said = {how.name(one): _said(how, how.asks(one, place)) for one in how.installed(place)}
    there = {name: words is not None and how.runs(words) for name, words in said.items()}
    if as_json:
        print_json(there)
    elif there:
        click.echo(table(("service", "runs"), [(name, "yes" if runs else "no") for name, runs in there.items()]))
    else:
        say("nothing is installed")


def _said(how: Manager, command: Sequence[str]) -> str | None:
    """What a question to the manager printed; None where it ended with another status than 0."""
    if shutil.which(how.program) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    return done.stdout if done.returncode == 0 else None


def _run(how: Manager, commands: Sequence[Sequence[str]], trouble: str) -> None:
    """Run the manager's commands; raises PoolError with its own words."""
    if shutil.which(how.program) is None:
        raise PoolError(f"{trouble}: {how.program} is not here; the files stay, for a machine that has it")
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").split("\n")[0]
            raise PoolError(f"{trouble}: {' '.join(command)}: {said}{_hint(said)}")


def _hint(said: str) -> str:
    away = "bus" in said or "not been booted with systemd" in said
    return "; is this a login of that user? (ssh, not su; or: loginctl enable-linger)" if away else ""


def _say_more(place: Place) -> None:
    """What a person would miss later."""
    if sys.platform == "win32":
        return
    if mine := sorted(name for name in os.environ if name.startswith("OFFLOAD_")):
        say(f"{', '.join(mine)}: of this shell, not of the service; what it needs goes into {environment_file(place)}")
    if sys.platform == "linux":
        say("it ends with your last session; `loginctl enable-linger` lets it stay")
