"""Where jobs go: no combination of configuration, policy, consent, failure and audit sends one past its tier."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.auditing import Audited, auditor, question, tier_with_output
from tasks.config import parse
from tasks.errors import OutOfReach
from tasks.ledger.claims import Claimed
from tasks.privacy import TIERS_OF, Clearance, Markers, Reach, Tier, permits, reach_of_address, tightest, within
from tasks.registry import CLOUD, Registry
from tasks.routing import Consent, Said
from tasks.schemas import NewJob, parse_line
from tasks.states import JobState
from workers.asking import ask
from workers.backends.border import Border

MAIL, SECRET = "jo.doe@acme-corp.com", "AKIA" + "QX7T2M4BV6Z3W5K2"
TIERS = st.one_of(st.none(), st.sampled_from(list(Tier)))
KINDS = {Reach.LOCAL: "127.0.0.1", Reach.LAN: "192.168.1.5", Reach.CLOUD: "8.8.8.8"}


@st.composite
def registries(draw: st.DrawFn) -> Registry:
    """A configuration: a class of each reach, an auditor or none, tiers said here and there, a cloud or none."""
    has_cloud = draw(st.booleans())
    servers = [{"name": r, "kind": "openai", "url": f"http://{a}/v1", "reach": r} for r, a in KINDS.items()]
    classes = {f"c-{r}": {"serve": [{"provider": r, "model": f"m-{r}"}]} for r in KINDS}
    classes["second"] = {"serve": [{"provider": draw(st.sampled_from(["local", "lan"])), "model": "second"}]}
    if has_cloud:
        classes[CLOUD] = {"serve": [{"provider": "cloud", "model": "m"}]}
    categories = {
        f"k-{r}": {"class": f"c-{r}", "on_failure": draw(st.sampled_from(["fail", "escalate"]))}
        | ({"privacy": tier} if (tier := draw(TIERS)) else {})
        for r in KINDS
    }
    said: dict[str, Any] = {"default": tier} if (tier := draw(TIERS)) else {}
    audit = {"private_class": "second"} if draw(st.booleans()) else {}
    config = {
        "providers": servers, "classes": classes, "categories": categories, "audit": audit,
        "privacy": said | {"markers": {"CONFIDENTIAL": "local_only"}},
    }  # fmt: skip
    return parse(orjson.dumps(config, default=str).decode(), "offload.yaml")


LINES = st.fixed_dictionaries(
    {
        "category": st.sampled_from([f"k-{r}" for r in KINDS]),
        "prompt": st.sampled_from(["plain words", f"to {MAIL}", f"key {SECRET}", "this is CONFIDENTIAL"]),
    },
    optional={
        "privacy": st.sampled_from([t.value for t in Tier]),
        "security": st.booleans(),
        "for": st.sampled_from(["human", "agent"]),
        "touches": st.sampled_from([["a.py"], ["deploy/.env"], ["a.py", "b.py"]]),
        "model": st.sampled_from(["c-cloud", "c-local", "m-lan"]),
    },
)
CONSENTS = st.one_of(st.none(), st.just(Consent("they asked for it", "jo", "2026-01-01T00:00:00+00:00")))


def said_tier(registry: Registry, line: dict[str, Any]) -> Tier:
    """The tier that people said, worked out apart from the code under test."""
    said = [registry.privacy.default, registry.categories[line["category"]].privacy, line.get("privacy")]
    order = ["local_only", "lan_ok", "cloud_ok"]
    return Tier(order[min((order.index(t) for t in said if t is not None), default=1)])


def found_tier(line: dict[str, Any]) -> Tier:
    """The tier that the prompts and paths of this test come to."""
    private = SECRET in line["prompt"] or "CONFIDENTIAL" in line["prompt"] or "deploy/.env" in line.get("touches", ())
    return Tier.LOCAL_ONLY if private else Tier.LAN_OK if MAIL in line["prompt"] else Tier.CLOUD_OK


def claimed(job: NewJob) -> Claimed:
    """The job in a worker's hand."""
    verdict = orjson.dumps(job.route.verdict)
    return Claimed(
        1, 1, "b", job.category, job.model_class, job.model, 0, 0, 0, job.body,
        tier=job.route.tier, verdict=verdict, escalated=job.route.escalated_from is not None,
    )  # fmt: skip


@given(registries(), LINES, CONSENTS)
def test_nothing_is_sent_past_its_tier(registry: Registry, line: dict[str, Any], consent: Consent | None) -> None:
    """A job's class is within its tier or dispatch holds it; and the border turns away whatever comes all the same."""
    job = parse_line(orjson.dumps(line), 1, registry, Said(consent=consent))
    if not isinstance(job, NewJob):
        assert job[0].field == "model"
        return
    said = said_tier(registry, line)
    tier = said if consent else tightest(said, found_tier(line))
    assert job.route.tier == tier
    assert tier is not None
    reach = registry.reaches[job.model_class]
    if job.route.state is JobState.QUEUED and reach is Reach.CLOUD:
        assert permits(tier, Reach.CLOUD)
    sent = job.route.state is JobState.QUEUED and tier in TIERS_OF[reach]
    for provider in registry.providers.values():  # whichever worker gets it, by whatever mistake
        if registry.serve(job.model_class, provider.name, None if job.route.escalated_from else job.model) is None:
            continue
        asked = ask(claimed(job), registry, provider.name)
        border = Border(provider.reach, registry.markers)
        allowed = permits(tier, provider.reach)
        if allowed:
            border.admit(provider.name, asked.call.clearance, {"messages": asked.call.messages})
        else:
            with pytest.raises(OutOfReach) as raised:
                border.admit(provider.name, asked.call.clearance, {"messages": asked.call.messages})
            assert SECRET not in str(raised.value)
        assert allowed or not sent
        assert not asked.goes_on or permits(tier, Reach.CLOUD)


@given(registries(), LINES, CONSENTS, st.sampled_from(["fine", f"write to {MAIL}", f"the key is {SECRET}"]))
def test_no_audit_passes_its_jobs_tier(
    registry: Registry, line: dict[str, Any], consent: Consent | None, output: str
) -> None:
    """Who is asked for a second opinion is within the tier of the job and of what its output holds."""
    job = parse_line(orjson.dumps(line), 1, registry, Said(consent=consent))
    if not isinstance(job, NewJob):
        return
    kept = (job.route.verdict or {}).get("consent")
    audited = Audited(
        1, job.category, job.model_class, "m", job.route.tier, orjson.loads(job.body), output, consent=kept
    )
    tier = tier_with_output(audited, registry)
    assert tightest(tier, job.route.tier) == tier
    found = auditor(audited, tier, registry)
    asks = question(audited, 1, registry)
    assert (asks is None) == (found is None)
    if found is not None:
        assert asks is not None
        assert asks.model_class == found
        assert permits(tier, registry.reaches[found])
        assert asks.route.tier == tier


@given(
    st.sampled_from(list(Tier)), st.sampled_from(list(Reach)), st.sampled_from([MAIL, SECRET, "plain"]), st.integers(0)
)
def test_the_border_reads_the_request_itself(tier: Tier, reach: Reach, text: str, cut: int) -> None:
    """What a detector finds in the request about to be sent counts, wherever in it, whatever was decided before.

    It counts as well where it is cut into two parts, which the model reads as one text.
    """
    found = Tier.LOCAL_ONLY if text == SECRET else Tier.LAN_OK if text == MAIL else Tier.CLOUD_OK
    allowed = permits(tier, reach) and permits(found, reach)
    parts = [text[: cut % len(text)], text[cut % len(text) :]]
    request = {"messages": [{"role": "user", "content": [{"type": "text", "text": part} for part in parts]}]}
    if allowed:
        Border(reach).admit("p", Clearance(tier), request)
    else:
        with pytest.raises(OutOfReach):
            Border(reach).admit("p", Clearance(tier), request)


def test_consent_holds_at_the_border_for_what_it_overruled_only() -> None:
    """A detector that a person overruled is passed over there, any other is not."""
    border = Border(Reach.CLOUD, Markers({"CONFIDENTIAL": Tier.LAN_OK}))
    clearance = Clearance(Tier.CLOUD_OK, frozenset({"email"}))
    border.admit("p", clearance, MAIL)
    with pytest.raises(OutOfReach):
        border.admit("p", clearance, f"{MAIL} CONFIDENTIAL")


def test_a_long_request_is_read_on_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the detectors read a long request, the event loop goes on; of a short one it waits for them."""
    read_on: list[bool] = []
    admit = Border.admit

    def noted(self: Border, *given: Any) -> None:
        read_on.append(threading.current_thread() is threading.main_thread())
        admit(self, *given)

    monkeypatch.setattr(Border, "admit", noted)
    border, clearance = Border(Reach.CLOUD), Clearance(Tier.CLOUD_OK)
    asyncio.run(border.admitted("p", clearance, {"prompt": "word " * 4}))
    asyncio.run(border.admitted("p", clearance, {"prompt": "word " * 40_000}))
    with pytest.raises(OutOfReach):
        asyncio.run(border.admitted("p", clearance, {"prompt": "word " * 40_000 + SECRET}))
    assert read_on == [True, False, False]


ADDRESSES = [
    ("127.0.0.1", Reach.LOCAL), ("127.9.9.9", Reach.LOCAL), ("::1", Reach.LOCAL), ("::ffff:127.0.0.1", Reach.LOCAL),
    ("10.0.0.1", Reach.LAN), ("172.16.0.1", Reach.LAN), ("172.32.0.1", Reach.CLOUD), ("192.168.9.9", Reach.LAN),
    ("169.254.1.1", Reach.LAN), ("100.64.0.1", Reach.LAN), ("100.127.255.255", Reach.LAN),
    ("100.128.0.1", Reach.CLOUD), ("fe80::1%eth0", Reach.LAN), ("fd12::1", Reach.LAN), ("::ffff:10.1.1.1", Reach.LAN),
    ("8.8.8.8", Reach.CLOUD), ("2001:4860::8888", Reach.CLOUD), ("::ffff:8.8.8.8", Reach.CLOUD),
    ("64:ff9b::808:808", Reach.CLOUD), ("0.0.0.0", Reach.CLOUD), ("::", Reach.CLOUD), ("nonsense", Reach.CLOUD),
]  # fmt: skip


@pytest.mark.parametrize(("address", "reach"), ADDRESSES)
def test_an_address_has_its_reach(address: str, reach: Reach) -> None:
    """Loopback is local; private ranges, link-local and tailnets are LAN; everything else is far away."""
    assert reach_of_address(address) is reach


@given(st.ip_addresses())
def test_nothing_public_is_near(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """An address that the whole internet can route to is never taken for local or LAN."""
    if address.is_global:
        assert reach_of_address(str(address)) is Reach.CLOUD
    assert within(reach_of_address(str(address)), Reach.CLOUD)


@pytest.mark.parametrize(
    ("text", "touches", "found"),
    [
        ("this is confidential.", (), {"marker:CONFIDENTIAL"}),
        ("unconfidentially said", (), set()),
        ("this is CONFI\u00adDEN\u200bTIAL", (), {"marker:CONFIDENTIAL"}),
        ("see /srv/clients/acme/notes", (), {"root:/srv/clients"}),
        ("see /srv/clients-old/notes", (), set()),
        ("", ("/srv/other/../clients/a.py",), {"root:/srv/clients"}),
        ("", ("/srv/clients2/a.py",), set()),
        ("", ("\\srv\\clients\\a.py",), {"root:/srv/clients"}),
    ],
)
def test_the_users_own_markers(text: str, touches: tuple[str, ...], found: set[str]) -> None:
    """A word counts as a word, case aside; a folder counts for paths under it and where a text names it."""
    markers = Markers({"CONFIDENTIAL": Tier.LAN_OK}, {"/srv/clients": Tier.LOCAL_ONLY})
    assert set(markers.found(text, touches)) == found


@pytest.mark.parametrize(
    ("marked", "text", "found"),
    [
        ("Projekt – Falke", "Stand von Projekt – Falke, Montag", True),
        ("Projekt – Falke", "Stand von Projekt - Falke, Montag", True),
        ("L’Oréal", "für L’Oréal", True),
        ("L'Oréal", "für L’Oréal", True),
        ("Müller", "bei Mu\u0308ller", True),
        ("Mu\u0308ller", "bei Müller", True),
        ("ACME‑X", "the ACME‑X contract", True),
        ("Großkunde", "an GROSSKUNDE schreiben", True),
        ("Großkunde", "an GROSSKUNDEN schreiben", False),
        ("社外秘", "これは社外秘です", True),
        ("社外秘A", "これは社外秘AB", False),
        ("ACME", "これはACMEの資料", True),
        ("기밀", "기밀은 여기에", True),
        ("INTERNAL", "internal_notes, INTERNALS", False),
    ],
)
def test_a_marker_is_read_as_the_text_is(marked: str, text: str, found: bool) -> None:
    """Dashes, quotes, case and marks apart are those of either; a letter of a script without blanks ends no word."""
    assert bool(Markers({marked: Tier.LOCAL_ONLY}).found(text)) is found


@pytest.mark.parametrize(
    ("root", "text", "found"),
    [
        ("/home/me/Kunde – Müller", "in /home/me/Kunde – Müller/a.txt", True),
        ("/srv/clients", "Read the notes in /srv/clients.", True),
        ("/srv/clients", "Is it in /srv/clients...", True),
        ("/srv/clients", "/srv/clientsの中を読む", True),
        ("/srv/clients", "/srv/clients.old and /srv/clients-old and /srv/clients_old", False),
    ],
)
def test_a_folder_is_read_as_the_text_is(root: str, text: str, found: bool) -> None:
    """Typographic characters are no others in a folder's name, and a sentence may end with it."""
    assert bool(Markers(roots={root: Tier.LOCAL_ONLY}).found(text)) is found


def test_a_touched_path_is_read_as_its_folder_is() -> None:
    """A path that came with plain characters lies in a folder that is written with others."""
    markers = Markers(roots={"/srv/Kunde – Müller": Tier.LOCAL_ONLY})
    assert markers.found("", ("/srv/Kunde - Müller/a.txt",))
    assert markers.found("", ("/srv/Kunde – Müller/a.txt",))


OWN_CLOUD = """
providers:
  - {name: home, kind: ollama, url: "http://127.0.0.1:1"}
  - {name: agent, kind: command, command: [agent]}
classes:
  small: {serve: [{provider: home, model: m}]}
  agents: {serve: [{provider: agent, model: a}]}
categories:
  errand: {class: agents, privacy: cloud_ok}
"""


def routed(text: str, line: dict[str, Any], said: Said = Said()) -> NewJob:  # noqa: B008  a value, never changed
    job = parse_line(orjson.dumps(line), 1, parse(text, "offload.yaml"), said)
    assert isinstance(job, NewJob), job
    return job


def test_a_cloud_class_of_the_users_own_needs_no_class_cloud() -> None:
    """Asked for by category or by name, it is where the job goes."""
    assert routed(OWN_CLOUD, {"category": "errand", "prompt": "x"}).route.state is JobState.QUEUED
    named = {"category": "summarize", "prompt": "x", "model": "agents", "privacy": "cloud_ok"}
    job = routed(OWN_CLOUD, named)
    assert (job.route.state, job.model_class) == (JobState.QUEUED, "agents")
    refused = routed(OWN_CLOUD, {"category": "summarize", "prompt": "x", "privacy": "cloud_ok", "security": True})
    assert refused.route.state is JobState.REFUSED


def test_a_line_does_not_loosen_what_the_submit_says() -> None:
    """Of --privacy and a line's own tier the tighter counts."""
    line = {"category": "summarize", "prompt": "x", "privacy": "cloud_ok"}
    assert routed("{}", line, Said(tier=Tier.LOCAL_ONLY)).route.tier is Tier.LOCAL_ONLY
    assert routed("{}", line | {"privacy": "local_only"}, Said(tier=Tier.CLOUD_OK)).route.tier is Tier.LOCAL_ONLY


def test_what_was_tightened_after_submit_holds_for_audits_and_touched_paths() -> None:
    """A category that became private is not shown to a cloud, and a folder marked later is held against its paths."""
    now = parse(
        "categories: {summarize: {privacy: local_only}}\nprivacy: {roots: {/srv/clients: local_only}}", "offload.yaml"
    )
    job = Audited(1, "summarize", "small", "m", Tier.CLOUD_OK, {"prompt": "x"}, "fine")
    assert tier_with_output(job, now) is Tier.LOCAL_ONLY
    before = routed("{}", {"category": "code", "prompt": "x", "touches": ["/srv/clients/a.py"], "privacy": "cloud_ok"})
    clearance = ask(claimed(before), now, "ollama").call.clearance
    with pytest.raises(OutOfReach):
        Border(Reach.CLOUD, now.markers).admit("p", clearance, "x")


def test_the_names_in_a_schema_are_read_as_well() -> None:
    """A schema goes out with its property names, so a detector reads them at submit and at the border."""
    line = {
        "category": "extract", "prompt": "x", "privacy": "cloud_ok",
        "schema": {"type": "object", "properties": {"jo.doe@acme-corp.com": {"type": "string"}}},
    }  # fmt: skip
    assert routed("{}", line).route.tier is Tier.LAN_OK
    with pytest.raises(OutOfReach):
        Border(Reach.CLOUD).admit("p", Clearance(Tier.CLOUD_OK), {"schema": line["schema"]})
