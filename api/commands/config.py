"""offload config"""

from __future__ import annotations

import click

from api.commands.output import Group, print_json, say
from tasks.config import config_schema, load_registry
from tasks.settings import load_settings


@click.group(cls=Group)
def config() -> None:
    """Check the configuration; print its schema."""


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(as_json: bool) -> None:
    """Check offload.yaml; every fault names file, line and field, and exits 2."""
    registry = load_registry(load_settings())
    served = {c.name: sorted({f"{s.model} on {s.provider}" for s in c.serve}) for c in registry.classes.values()}
    if as_json:
        print_json({"source": registry.source, "providers": sorted(registry.providers), "classes": served})
        return
    say(f"fine: {registry.source}")
    for name in registry.providers:
        if not registry.classes_of(name):
            say(f"provider {name} serves no class: name it under classes.<name>.serve")
    for name, models in served.items():
        click.echo(f"{name}: {', '.join(models) or 'nothing serves it'}")


@config.command()
@click.option("--json", is_flag=True, expose_value=False, help="Print JSON, which it always is.")
def schema() -> None:
    """Print offload.yaml's JSON Schema, for editors."""
    print_json(config_schema())
