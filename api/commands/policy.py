"""offload policy show | explain | test"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from api.commands.output import Group, print_json, print_text, say
from api.commands.said import said_options
from api.use_cases.explaining import Explained, explain, try_cases, untried_rules
from tasks.config import load_registry
from tasks.policy.file import policy_path, policy_schema, shipped
from tasks.routing import Said
from tasks.settings import load_settings
from tasks.yaml_text import read_text

#: the case file that comes with the package
CASES = "cases.yaml"


@click.group(cls=Group)
def policy() -> None:
    """Show the policy; explain what it says of a job; test it."""


@policy.command()
@click.option(
    "--shipped", "of_package", is_flag=True, help="The one that comes with the package, whatever is in force."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(of_package: bool, as_json: bool) -> None:
    """Print the policy in force, as a policy.yaml that can be changed."""
    if of_package and as_json:
        raise click.UsageError("--shipped prints YAML")
    if of_package:  # without a look at the file in force: the shell may just have emptied it for this very output
        click.echo(shipped("default.yaml"), nl=False)
        return
    settings = load_settings()
    rules = load_registry(settings).policy
    if as_json:
        print_json(asdict(rules))
        return
    say(f"{rules.label}, from {rules.source}")
    path = policy_path(settings)
    click.echo(shipped("default.yaml") if path is None else read_text(path), nl=False)


@policy.command()
@click.option("--json", is_flag=True, expose_value=False, help="Print JSON, which it always is.")
def schema() -> None:
    """Print policy.yaml's JSON Schema, for editors."""
    print_json(policy_schema())


@policy.command("explain")
@click.argument("category")
@click.argument("prompt")
@click.option("--model", metavar="M", help="A configured model or class.")
@said_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain_job(
    category: str,
    prompt: str,
    model: str | None,
    said: Said,
    as_json: bool,
) -> None:
    """Say what would become of a job of CATEGORY with PROMPT (- is stdin); nothing is submitted."""
    from api.commands.run import read_prompt

    line: dict[str, Any] = {"category": category, "prompt": read_prompt(prompt)}
    if model is not None:
        line["model"] = model
    found = explain(load_registry(load_settings()), line, said)
    if as_json:
        print_json(asdict(found))
    else:
        _print(found)


def _print(found: Explained) -> None:
    verdict = found.verdict
    print_text(f"verdict   {verdict['action']}, by {verdict['policy']}")
    for reason in verdict.get("reasons", ()):
        print_text(f"  reason  {reason['id']}: {reason['reason']}")
    print_text(f"privacy   {found.tier}")
    for name, tier in verdict.get("detectors", {}).items():
        overruled = ", overruled by consent" if "consent" in verdict else ""
        print_text(f"  found   {name}: {tier}{overruled}")
    print_text(f"state     {found.state}" + (f", class {found.model_class}" if found.state == "queued" else ""))
    waits = "nobody here: it waits until somebody can" if found.state == "queued" else "nobody"
    print_text(f"runs on   {found.provider or waits}")
    for name, why in found.others.items():
        print_text(f"  not     {name}: {why}")


@policy.command()
@click.argument("cases", required=False, type=click.Path(path_type=Path), metavar="[CASES]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def test(cases: Path | None, as_json: bool) -> None:
    """Try CASES (YAML; without it the shipped ones) on the policy in force; exit 1 when one is not as expected.

    \b
    cases:
      - job: {category: code, prompt: x, touches: [a.py, b.py]}
        expect: {action: escalate, reasons: [many-files], privacy: lan_ok, detectors: []}

    Of what is expected, only the action must be given. pad_to: N beside job fills its prompt up to N bytes.
    """
    registry = load_registry(load_settings())
    if cases is None:
        text, source = shipped(CASES), f"the shipped {CASES}"
    else:
        text, source = (sys.stdin.read(), "stdin") if str(cases) == "-" else (read_text(cases), str(cases))
    tried = try_cases(registry, text, source)
    untried = untried_rules(registry, text, source)
    wrong = [one for one in tried if one.wrong]
    if as_json:
        print_json({"cases": len(tried), "wrong": [asdict(one) for one in wrong], "untried_rules": untried})
    else:
        for one in wrong:
            print_text(f"case {one.number} ({one.category}): {one.wrong}")
        if untried:
            say(f"no case tries: {', '.join(untried)}")
        say(f"{len(tried) - len(wrong)} of {len(tried)} cases as expected, {registry.policy.label}")
    sys.exit(1 if wrong else 0)
