"""`offload simulate` and `python -m workers.simulator`: one command, an option for each field of the
configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from tasks.errors import UsageError
from workers.simulator.config import SimulatorConfig


def _model(text: str) -> tuple[str, dict[str, Any]]:
    """NAME[,chat|embed][,thinking][,dimensions=N][,context=N] as a name and a ModelSpec's fields."""
    name, *words = text.split(",")
    spec: dict[str, Any] = {}
    for word in words:
        key, _, value = word.partition("=")
        if key in ("chat", "embed"):
            spec["kind"] = key
        elif key in ("thinking", "hosted"):
            spec[key] = True
        else:
            spec[key] = value
    return name, spec


def _fault(text: str) -> tuple[str, str]:
    """NAME:RATE or NAME=ARG:RATE as a fault and its rate."""
    name, colon, rate = text.rpartition(":")
    if not colon:
        raise click.BadParameter(f"{text!r} is not NAME:RATE, such as 500:0.1 or 429=2:0.05", param_hint="--fault")
    return name, rate


@click.command("simulate")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=11434, show_default=True, help="0 takes a free one.")
@click.option("--model", "models", multiple=True,
              metavar="NAME[,embed][,thinking][,context=N][,dimensions=N]",
              help="Serve this model, and the default ones no more; repeatable.")  # fmt: skip
@click.option("--load-s", type=float, help="Seconds to load a model.")
@click.option("--loaded-limit", type=int, help="Models in memory at once.")
@click.option("--slots", type=int, help="Requests served at once.")
@click.option("--queue-limit", type=int, help="Requests that may wait; beyond it 503.")
@click.option("--ttft-s", type=float, help="Seconds to the first token.")
@click.option("--tokens-per-s", type=float, help="Of one request; 0 is unlimited.")
@click.option("--fault", "faults", multiple=True, metavar="NAME[=ARG]:RATE", help="Such as 500:0.1; repeatable.")
@click.option("--seed", type=int, help="Of the draw of faults.")
@click.option("--api-key", help="Ask for this key.")
@click.option("--call-log", type=click.Path(dir_okay=False, path_type=Path), help="Append a JSON line per call.")
@click.option("--reasoning-field", type=click.Choice(["reasoning_content", "reasoning"]), help="Of OpenAI's routes.")
@click.option("--protocol", "protocols", multiple=True, type=click.Choice(["ollama", "openai", "anthropic"]),
              help="Speak only this one; repeatable.")  # fmt: skip
def command(host: str, port: int, models: tuple[str, ...], faults: tuple[str, ...], **options: Any) -> None:
    """Serve Ollama's, OpenAI's and Anthropic's protocols without a model, with faults on request."""
    from workers.simulator.server import serve

    given = {key: value for key, value in options.items() if value not in (None, ())}
    if models:
        given["models"] = dict(map(_model, models))
    if faults:
        given["faults"] = dict(map(_fault, faults))
    try:
        serve(SimulatorConfig.model_validate(given), host, port)
    except UsageError as error:
        raise click.UsageError(str(error)) from None
    except ValidationError as error:
        told = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False))
        raise click.UsageError("; ".join(told)) from None
