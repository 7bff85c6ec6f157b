"""offload backup, offload restore"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from api.commands.output import print_json, say
from tasks.ledger import schema
from tasks.settings import load_settings


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def backup(folder: Path, as_json: bool) -> None:
    """Copy the ledger, uploaded files, offload.yaml and policy.yaml into a new FOLDER, while the pool runs."""
    from api.use_cases.backup import back_up

    manifest = back_up(load_settings(), folder)
    if as_json:
        print_json(asdict(manifest))
    else:
        uploads = sum("/" in name for name in manifest.files)
        names = [name for name in manifest.files if "/" not in name] + (
            [f"{uploads:,} uploaded files"] if uploads else []
        )
        say(f"backed up {', '.join(names)} to {folder}; it holds prompts and outputs, so keep it private")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def restore(folder: Path, as_json: bool) -> None:
    """Put the backup in FOLDER back into an empty pool; what ran when it was made runs again."""
    from api.use_cases.backup import restore as put_back

    manifest, left = put_back(load_settings(), folder)
    if as_json:
        print_json(asdict(manifest) | {"left": left})
        return
    say(f"restored the ledger of {manifest.made_at}")
    for name in left:
        say(f"{name} was there and is left as it is; the backup's is {folder / name}")
    if manifest.revision < schema.REVISION:
        say(f"its tables ({manifest.revision}) were brought to those of this version ({schema.REVISION})")
