"""What rules match, what a verdict keeps, and how faults of a policy file are told."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.categories import DEFAULT_CATEGORIES
from tasks.errors import ConfigError
from tasks.policy import Action, Facts, Policy, Rule, When, from_plain, judge
from tasks.policy.file import SHIPPED, parse_policy, policy_schema, shipped

DEFAULT = parse_policy(shipped("default.yaml"), SHIPPED, DEFAULT_CATEGORIES)


def read(text: str) -> Policy:
    return parse_policy(text, "policy.yaml", DEFAULT_CATEGORIES)


def one_rule(when: str, action: str = "escalate") -> Policy:
    return read(f"version: 2\nname: mine\nrules:\n  - {{id: r, reason: because, action: {action}, when: {{{when}}}}}")


@pytest.mark.parametrize(
    ("when", "yes", "no"),
    [
        ("category: [code, plan]", Facts("plan"), Facts("chat")),
        ("category: code", Facts("code"), Facts("chat")),
        ("touches_more_than: 1", Facts("code", touches=("a", "b")), Facts("code", touches=("a", "./a", "A"))),
        ("for: [user-facing]", Facts("code", audience=" User_Facing"), Facts("code", audience="users")),
        ("security: true", Facts("code", security=True), Facts("code")),
        ("security: false", Facts("code"), Facts("code", security=True)),
        ("prompt_over_bytes: 10", Facts("code", 11), Facts("code", 10)),
        ("category: code, security: true", Facts("code", security=True), Facts("chat", security=True)),
        ("touches: '*auth*'", Facts("x", touches=("src/OAuth.rs",)), Facts("x", touches=("src/parser.rs",))),
        ("touches: '*/jwt*'", Facts("x", touches=("jwt.py",)), Facts("x", touches=("myjwt.py",))),
        ("touches: '*/.ssh/*'", Facts("x", touches=(".ssh\\config",)), Facts("x", touches=("ssh/config",))),
        ("touches: 'src/*.py'", Facts("x", touches=("repo/src/a/b.py",)), Facts("x", touches=("src/a.rs",))),
        ("touches: '*.[ch]'", Facts("x", touches=("a.h",)), Facts("x", touches=("a.rs",))),
    ],
)
def test_a_rule_meets_what_it_says(when: str, yes: Facts, no: Facts) -> None:
    """Each condition, alone and together with another, matches the one job and not the other."""
    policy = one_rule(when)
    assert judge(policy, yes).action is Action.ESCALATE
    assert judge(policy, no).action is Action.OFFLOAD


def test_all_reasons_are_kept_and_the_gravest_counts() -> None:
    """Refuse is graver than escalate, and both reasons stand in the policy's order, under its name and hash."""
    policy = read(
        "version: 3\nname: mine\nrules:\n"
        "  - {id: a, reason: first, action: refuse, when: {security: true}}\n"
        "  - {id: b, reason: second, action: escalate, when: {category: code}}\n"
    )
    verdict = judge(policy, Facts("code", security=True))
    assert verdict.action is Action.REFUSE
    assert verdict.reasons == (("a", "first"), ("b", "second"))
    assert verdict.words == "first; second"
    assert verdict.policy == f"mine v3 ({policy.hash})"


def test_the_hash_is_of_what_acts() -> None:
    """Comments, names and versions do not change it; a rule does."""
    plain = "version: 1\nrules:\n  - {id: a, reason: r, action: refuse, when: {security: true}}\n"
    assert read(plain).hash == read(f"# words\nname: other\n{plain.replace('version: 1', 'version: 9')}").hash
    assert read(plain).hash != read(plain.replace("refuse", "escalate")).hash


def test_a_policy_survives_its_plain_form() -> None:
    """What the helpers keep of a policy judges as the policy does."""
    assert from_plain(asdict(DEFAULT)) == DEFAULT


PATHS = st.text(alphabet="abcAUTHauthjwt/.\\_-* [", max_size=20)


@given(st.lists(PATHS, max_size=4), st.integers(0, 40_000), st.one_of(st.none(), st.text(max_size=10)), st.booleans())
def test_more_reasons_never_loosen(touches: list[str], size: int, audience: str | None, security: bool) -> None:
    """Any further touched path or a larger prompt keeps every reason there was."""
    before = judge(DEFAULT, Facts("code", size, tuple(touches), audience, security))
    after = judge(DEFAULT, Facts("code", size + 1, (*touches, "x/secrets.txt"), audience, True))
    assert {r for r, _ in before.reasons} <= {r for r, _ in after.reasons}
    assert after.action is Action.ESCALATE


FAULTS = {
    "an unknown key": ("version: 1\nruels: []", "policy.yaml:2: ruels: unknown key (did you mean 'rules'?)"),
    "no version": ("rules: []", "policy.yaml:1: version: Field required"),
    "an unknown condition": (
        "version: 1\nrules:\n  - id: a\n    reason: r\n    action: refuse\n    when:\n      tuoches: [x]",
        "policy.yaml:7: rules.0.when.tuoches: unknown key (did you mean 'touches'?)",
    ),
    "a bad glob": (
        "version: 1\nrules:\n  - id: a\n    reason: r\n    action: refuse\n    when:\n      touches: ['ok', '*[a*']",
        "policy.yaml:7: rules.0.when.touches.1: Value error, the glob's [ and ] do not fit together, or match nothing",
    ),
    "two rules of one id": (
        "version: 1\nrules:\n  - {id: a, reason: r, action: refuse, when: {security: true}}\n"
        "  - {id: a, reason: r, action: refuse, when: {security: true}}",
        "policy.yaml:4: rules.1.id: two rules have the id 'a'",
    ),
    "a category that does not exist": (
        "version: 1\nrules:\n  - id: a\n    reason: r\n    action: refuse\n    when: {category: [deplyo]}",
        "policy.yaml:6: rules.0.when.category.0: there is no category 'deplyo' (did you mean 'deploy'?)",
    ),
    "an empty rule": (
        "version: 1\nrules:\n  - {id: a, reason: r, action: refuse, when: {}}",
        "policy.yaml:3: rules.0.when: says nothing, so it would meet every job",
    ),
    "an action there is not": (
        "version: 1\nrules:\n  - {id: a, reason: r, action: allow, when: {security: true}}",
        "policy.yaml:3: rules.0.action: Input should be 'escalate' or 'refuse'",
    ),
    "a glob that matches nothing": (
        "version: 1\nrules:\n  - {id: a, reason: r, action: refuse, when: {touches: '[z-a]'}}",
        "policy.yaml:3: rules.0.when.touches.0: Value error, the glob's [ and ] do not fit together, or match nothing",
    ),
    "a reason of two lines": (
        'version: 1\nrules:\n  - {id: a, reason: "r\\ns", action: refuse, when: {security: true}}',
        "policy.yaml:3: rules.0.reason: Value error, expected one line of text",
    ),
    "a version that is no number": (
        "version: true\nrules: []",
        "policy.yaml:1: version: Input should be a valid integer",
    ),
    "a bomb of aliases": (
        "a: &a [1, 1]\n" + "\n".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in pairwise("abcdefg")),
        "policy.yaml: holds more than",
    ),
    "a bomb of merges": (
        "a: &a {x: 1}\n" + "\n".join(f"{b}: &{b} {{<<: [{', '.join(['*' + a] * 9)}]}}" for a, b in pairwise("abcdefg")),
        "policy.yaml: holds more than",
    ),
    "itself within itself": ("a: &a [*a]", "policy.yaml: nests too deeply, or within itself"),
    "no mapping": ("- 1", "policy.yaml:1: expected a mapping with name, version, rules"),
    "no YAML": ("a: [", "policy.yaml:1: not YAML"),
}


@pytest.mark.parametrize(("text", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_has_its_place_and_the_nearest_name(text: str, message: str) -> None:
    """File, line and field of every fault, and what was meant where that can be told."""
    with pytest.raises(ConfigError) as raised:
        read(text)
    assert str(raised.value).startswith(message)
    assert raised.value.exit_code == 2


def test_the_schema_knows_every_condition() -> None:
    """Editors are told of each condition by the name it is written with."""
    properties = policy_schema()["$defs"]["WhenModel"]["properties"]
    assert {"category", "touches", "touches_more_than", "for", "security", "prompt_over_bytes"} == set(properties)


def test_every_condition_can_be_judged() -> None:
    """A rule of no conditions matches everything, which is why a file may not have one."""
    assert Rule("a", "r", Action.REFUSE, When()).when.matches(Facts("anything"))
