"""llm-offload: one prompt to the model of its category, the answer on stdout, one line about it on stderr.

exit  meaning
0     answered; with --health: the server answers
1     anything else: server away, an error of it, privacy, an empty answer
2     wrong arguments, unknown category, wrong configuration
3     --json, and the answer is not one JSON value
130   Ctrl-C
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from api.helpers import plan as plans
from api.helpers.answers import FAILED, USAGE, Answer, deliver, one_json, print_output, say
from api.helpers.arguments import NONE, Given, category_and_prompt, check_text, parse
from api.helpers.plan import Plan, Way
from api.interrupts import INTERRUPTED, heed_swallowed
from tasks.errors import CallError, OffloadError, OutOfReach, UsageError
from tasks.privacy import UNSAID, Clearance, Reach, findings, permits, tightest
from workers import straight
from workers.straight_bodies import Question, Reply

NAME = "llm-offload"
HELP = """\
usage: llm-offload --health
       llm-offload [--json] [--pool] <category> <prompt>

Asks the model of a category straight, and prints its answer. A prompt of - is read from stdin; after -- nothing is
an option. --json: JSON, temperature 0, exit 3 when the answer is none. --pool: as a job of the running pool.
"""
OPTIONS = {"--health": NONE, "--json": NONE, "--pool": NONE, "--help": NONE}


@dataclass(frozen=True, slots=True)
class Asked:
    """One call: what is asked, and what is said of it."""

    category: str
    prompt: str
    json: bool = False
    pool: bool = False
    touches: tuple[str, ...] = ()
    audience: str | None = None
    security: bool = False


def main() -> None:
    """The `llm-offload` executable."""
    heed_swallowed()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code."""
    return guarded(NAME, lambda: _run(arguments))


def guarded(name: str, work: Callable[[], int]) -> int:
    """Do something; every error becomes one message and its exit code."""
    _open_streams()
    try:
        return work()
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as stop:  # from the pool's way, which says how to come back
        return stop.code if isinstance(stop.code, int) else FAILED
    except OffloadError as error:
        say(f"{name}: {error}")
        return USAGE if isinstance(error, UsageError) else FAILED
    except Exception as error:  # its words may hold a prompt
        say(f"{name}: unexpected {type(error).__name__}")
        return FAILED


def _open_streams() -> None:
    """A stream that the caller has closed is as one that is empty, or that nobody reads."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  it lives as long as we do


def _run(arguments: Sequence[str]) -> int:
    check_text(arguments)
    given = parse(arguments, OPTIONS)
    if "--help" in given:
        return print_output(HELP.rstrip())
    if "--health" in given:
        return _health(given)
    category, prompt = category_and_prompt(given)
    asked = Asked(category, prompt, json="--json" in given, pool="--pool" in given)
    if asked.pool:
        from api.helpers import pooled  # all of the pool: only here

        return pooled.answer(NAME, asked)
    return answer(plans.in_force(), asked)


def _health(given: Given) -> int:
    if given.words or "--json" in given:
        raise UsageError("--health stands alone")
    if "--pool" in given:
        from api.helpers import pooled

        pooled.must_run()
        return print_output("healthy")
    way = plans.in_force().way(plans.DEFAULT)
    if way.server is None:
        raise CallError("not_straight", way.hindrance)
    straight.probe(way.server)
    return print_output("healthy")


def answer(plan: Plan, asked: Asked) -> int:
    """Ask the category's server straight and print what it answers; the exit code. Raises OffloadError."""
    way = plan.way(asked.category)
    if way.cloud_only:
        raise UsageError(f"category {way.hindrance}")
    if way.server is None:
        raise CallError("not_straight", way.hindrance)
    if asked.json and way.kind == "embed":
        raise UsageError("an embedding has no JSON form to ask for")
    _admit(plan, way, asked)
    question = _question(way, asked)
    return deliver(_answer(way, question, straight.ask(way.server, question)))


def _admit(plan: Plan, way: Way, asked: Asked) -> None:
    """Pass where the prompt may go to the category's server; raises OutOfReach."""
    assert way.server is not None
    reach = way.server.reach
    if reach is Reach.LOCAL:  # every tier may
        return
    said = tightest(plan.tier, way.privacy) or UNSAID
    found = findings(f"{way.system}\n{asked.prompt}", asked.touches, plan.markers)
    tier = Clearance(said).tightened(found)
    if not permits(tier, reach):
        raise OutOfReach(tier, f"the prompt is {tier} and provider {way.server.name} is {reach}; nothing was sent")


def _question(way: Way, asked: Asked) -> Question:
    """What is sent: what a worker would send for such a job (workers/asking.py)."""
    wants_json = (asked.json or way.json) and way.kind == "chat"
    return Question(
        kind=way.kind,
        model=way.model,
        prompt=asked.prompt,
        system=way.system,
        json=wants_json,
        think=way.think,
        temperature=0.0 if wants_json else way.temperature,
        max_tokens=way.max_tokens,
        options=way.options,
        connect_s=way.connect_s,
        total_s=way.total_s,
    )


def _answer(way: Way, question: Question, reply: Reply) -> Answer:
    """A reply as it is printed; raises CallError."""
    if question.kind == "embed":
        text: str | None = json.dumps(reply.vector, separators=(",", ":"))
    else:
        from tasks.leaks import normalise  # here: it is needed only once the answer is there

        text = normalise(reply.text).text.rstrip()
        if not text:
            raise CallError("empty_output", f"{question.model} gave an empty answer")
        if question.json:
            text = one_json(text)
        if reply.cut and text is not None:
            raise CallError("truncated", f"the answer was cut off after {reply.tokens} tokens; raise max_tokens")
    return Answer(text or "", way.model, way.name, reply.tokens, reply.duration_ms, validated=text is not None)
