"""The options that say what a job touches, whom it is for, and where it may go."""

from __future__ import annotations

import functools
import getpass
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click
from pydantic import TypeAdapter, ValidationError

from tasks.lines import App
from tasks.privacy import Tier
from tasks.routing import Consent, Said


class _AppName(click.ParamType[str]):
    """What a program calls itself."""

    name = "app"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return TypeAdapter(App).validate_python(value)
        except ValidationError:
            self.fail("has 1 to 64 characters, no space at its ends and no control character", param, ctx)


#: the program that asks, for statistics
app_option = click.option("--app", type=_AppName(), metavar="A", help="The program that asks; see `offload stats`.")
#: characters of a reason
MOST_WHY = 500


def said_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options; the command is given what they say as `said`."""

    @functools.wraps(command)
    def with_said(
        *args: Any,
        touches: tuple[str, ...],
        audience: str | None,
        security: bool,
        privacy: str | None,
        consent: str | None,
        **others: Any,
    ) -> None:
        _check(touches, audience, consent)
        tier = Tier(privacy) if privacy else None
        agreed = None if consent is None else Consent(consent.strip(), _who(), _now())
        command(*args, said=Said(None, touches, audience, security, tier, agreed), **others)

    for option in reversed(OPTIONS):
        with_said = option(with_said)
    return with_said


OPTIONS = (
    click.option("--touches", multiple=True, metavar="PATH", help="A path that the work touches; repeatable."),
    click.option("--for", "audience", metavar="WHO", help="Whom the answer is for: human, production, …"),
    click.option("--security", is_flag=True, help="Security work."),
    click.option("--privacy", type=click.Choice([t.value for t in Tier]), help="How far it may go."),
    click.option("--consent", metavar="WHY", help="Overrule what detectors find; recorded with your name."),
)


def _check(touches: tuple[str, ...], audience: str | None, consent: str | None) -> None:
    if consent is not None and not 1 <= len(consent.strip()) <= MOST_WHY:
        raise click.UsageError(f"--consent says why, in 1 to {MOST_WHY} characters")
    for name, values in (("--touches", touches), ("--for", (audience,) if audience is not None else ())):
        if any(not value.strip() for value in values):
            raise click.UsageError(f"{name} is empty")


def _who() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
