"""anchor-offload: the policy first, then a healthy server, then `llm-offload` in this process.

exit  meaning
0     answered; with --escalate also by the cloud
2     wrong arguments or configuration
10    the policy leaves it to no local model; nothing was asked of any server
11    the answer is not JSON
12    llm-offload ended otherwise
13    the model server is unhealthy; with --pool: no pool runs
130   Ctrl-C
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from api.helpers import plan as plans
from api.helpers import raw, telemetry
from api.helpers.answers import NOT_JSON, print_output, say
from api.helpers.arguments import ALL, NONE, ONE, Given, category_and_prompt, check_text, parse
from api.helpers.health import is_healthy
from api.helpers.plan import Plan
from api.helpers.raw import Asked
from api.interrupts import INTERRUPTED, heed_swallowed
from tasks import policy
from tasks.policy import Action, Facts, Verdict

NAME = "anchor-offload"
HELP = """\
usage: anchor-offload <category> <prompt> [--touches f1 f2 …] [--for <audience>] [--security] [--json]
                      [--escalate] [--pool]

llm-offload behind the policy. Exit 10 to 13, with ESCALATE and the reason on stderr: not for a local model.
--touches takes every argument up to the next that begins with --. --escalate: what the policy disqualifies goes to
the running pool's cloud worker, where there is one; the flag says that the prompt may leave. --pool: as a job of the
running pool.
"""
OPTIONS = {
    "--touches": ALL,
    "--for": ONE,
    "--security": NONE,
    "--json": NONE,
    "--escalate": NONE,
    "--pool": NONE,
    "--help": NONE,
}
DISQUALIFIED, BAD_JSON, RAW_FAILED, UNHEALTHY = 10, 11, 12, 13


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended, as the telemetry has it."""

    decision: str
    reason: str
    exit_code: int
    pooled: bool = False  #: the pool had it as a job


def main() -> None:
    """The `anchor-offload` executable."""
    heed_swallowed()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit code."""
    return raw.guarded(NAME, lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    check_text(arguments)
    given = parse(arguments, OPTIONS)
    if "--help" in given:
        return print_output(HELP.rstrip())
    asked = _asked(given)
    plan = plans.in_force()
    began = time.monotonic()
    try:
        ended = _judged(plan, asked, escalates="--escalate" in given)
        if asked.pool and ended.exit_code not in (DISQUALIFIED, UNHEALTHY):
            ended = replace(ended, pooled=True)
    except KeyboardInterrupt:
        ended = Ended("offload", "interrupted", INTERRUPTED)
    duration_ms = (time.monotonic() - began) * 1000.0
    telemetry.append(
        plans.shown(asked.category), ended.decision, ended.reason, duration_ms, ended.exit_code, pooled=ended.pooled
    )
    return ended.exit_code


def _asked(given: Given) -> Asked:
    audience = given.one("--for")
    category, prompt = category_and_prompt(given)
    return Asked(
        category,
        prompt,
        json="--json" in given,
        pool="--pool" in given,
        touches=tuple(given.values.get("--touches", ())),
        audience=audience,
        security="--security" in given,
    )


def _judged(plan: Plan, asked: Asked, *, escalates: bool) -> Ended:
    facts = Facts(asked.category, len(asked.prompt.encode()), asked.touches, asked.audience, asked.security)
    verdict = policy.judge(policy.from_plain(plan.policy), facts)
    if verdict.action is not Action.OFFLOAD:
        return _disqualified(verdict, asked, escalates=escalates)
    healthy = _pool_runs() if asked.pool else _server_answers(plan, asked)
    if not healthy:
        return _escalated("model server unhealthy", UNHEALTHY)
    code = raw.guarded(raw.NAME, lambda: _called(plan, asked))
    match code:
        case 0:
            return Ended("offload", "none", 0)
        case _ if code == INTERRUPTED:
            return Ended("offload", "interrupted", code)
        case _ if code == NOT_JSON:
            return _escalated("JSON validation failed", BAD_JSON)
    return _escalated(f"llm-offload returned {code}", RAW_FAILED)


def _escalated(reason: str, code: int) -> Ended:
    say(f"ESCALATE: {reason}")
    return Ended("escalate", reason, code)


def _disqualified(verdict: Verdict, asked: Asked, *, escalates: bool) -> Ended:
    ended = _escalated(verdict.words, DISQUALIFIED)
    if not escalates or verdict.action is not Action.ESCALATE:
        return ended
    from api.helpers import pooled  # all of the pool: only here

    code = raw.guarded(NAME, lambda: pooled.ask_cloud(NAME, asked))
    return Ended(ended.decision, ended.reason, code, pooled=True) if code in (0, INTERRUPTED) else ended


def _called(plan: Plan, asked: Asked) -> int:
    if not asked.pool:
        return raw.answer(plan, asked)
    from api.helpers import pooled

    return pooled.answer(NAME, asked)


def _pool_runs() -> bool:
    from api.helpers import pooled

    return raw.guarded(NAME, pooled.must_run) == 0


def _server_answers(plan: Plan, asked: Asked) -> bool:
    """Whether the category's server answers; of what has none, the default one's; without any, the call will say."""
    way = plan.ways.get(asked.category) or plan.ways[plans.DEFAULT]
    return way.server is None or is_healthy(way.server)
