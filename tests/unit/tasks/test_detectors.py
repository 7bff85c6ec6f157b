"""Secrets and personal data are found in what people really paste, and little else is taken for them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.detectors import TIER_OF, detect, names_secret, plain
from tests.bench.detectors import Labelled, figures, labelled

#: by detector, texts in which it must find something; a token is split so that no scanner of sources minds it
FOUND = {
    "private_key": (
        "-----BEGIN " + "RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIEpAIBAAKCAQEA0Z3VS5JJcds3xfn/ygWyF8PbnGy",
        "-----BEGIN " + "PGP PRIVATE KEY BLOCK-----\n\nlQOYBGVx1K4BCADR7Zx0mPqLtYvUw2s3d4f5g6h7j8k9",
        "key: |\n  -----BEGIN " + "OPENSSH PRIVATE KEY-----\n  b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ\n",
    ),
    "cloud_key": (
        "id AKIA" + "Q3EGRZVTX5KWJ2NB",
        "?key=AIza" + "SyD4k9fJ2mQ7xW1pLr8TzVbN3cH6sGyEaUo",
        "AccountName=a;AccountKey=" + "kR7pq9LzXw2s" * 7 + "Qw==;",
        "aws_secret_access_key = " + "kR7pq9LzXw2sT4vB6nM8" + "aS1dF3gH5jK7lP9oI0uY",
    ),
    "api_token": (
        "ghp_" + "a8Kd72LmPq90ZxYw34TrVb56NcHs81GjEu2F",
        "SG." + "a8Kd72LmPq90ZxYw34TrVb" + ".56NcHs81GjEu2Fa8Kd72LmPq90ZxYw34TrVb56NcHs8",
        "sk-ant-" + "api03-a8Kd72LmPq90ZxYw34TrVb56NcHs",
        "bot 6847120395:" + "AAa8Kd72LmPq90ZxYw34TrVb56NcHs81GjE",
    ),
    "jwt": ("x=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ",),
    "password": (
        "password: hunter2!x",
        '{"user": "a", "password": "swordfish"}',
        "Authorization: Bearer 5f2b8c1d9e7a4063b1f2",
        "das Passwort lautet: Sonne#47",
        "PASSWORD：\u00a0Sonne＃47",
        "pass\u200bword = 'Kirsche77'",
        "api_key: 8f14e45fceea167a5a36dedd4bea2543",
    ),
    "url_credentials": ("postgres://app:Zx9kQ2@db.acme.io/crm", "redis://:Zx9kQ2@10.0.0.5"),
    "env_text": ("HOST=db\nDB_PASSWORD=blaubeere", "export A=1\nexport API_KEY='f0e9d8c7b6'"),
    "email": ("an k.meier@nordwind.de!", "ｍｉａ＠ｐｏｓｔｅｏ．ｄｅ", "u=tom%40garden.org&x"),
    "phone": (
        "+49 151 23456789",
        "(212) 555-0123",
        "06 12 34 56 78",
        "phone: 5550142887",
        "＋49\u00a0(0)\u00a030 123456",
    ),
    "iban": ("DE89 3704 0044 0532 0130 00", "gb29nwbk60161331926819", "NL91-ABNA-0417-1643-00"),
    "card": (
        "4111 1111 1111 1111",
        "378282246310005",
        "5105-1051-0510-5100",
        "card４２４２ ４２４２ ４２４２ ４２４２"[4:],
    ),
}
#: by detector, texts that come close
NOT_FOUND = {
    "private_key": (
        "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A",
        '"-----BEGIN RSA PRIVATE KEY-----" in x',
    ),
    "cloud_key": ("AKIAIOSFODNN7EXAMPLE", "AccountKey=<key>;", "AIza begins a Google key"),
    "api_token": (
        "ghp_" + "x" * 36,
        ".sk-folding-cube .sk-cube-parent-2",
        "hf_transfer",
        "9fceb02d0ae598e95dc970b74767f19372d61af8",
    ),
    "jwt": ("eyJhbGciOiJIUzI1NiJ9", "eyJhIjoxLCJiIjoyfQ.eyJzdWIiOiI0MiJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ"),
    "password": (
        "password: <password>",
        "password: ${DB_PASSWORD}",
        "PASSWORD=changeme",
        "password = os.environ['P4SS']",
        "password = get_password(1)",
        "token = None",
        "password: ****",
        '"password": "your-password-here"',
        "max_tokens: 4096",
        "The password is wrong.",
    ),
    "url_credentials": ("postgres://user:password@localhost/db", "https://git@github.com/a/b", "mysql://{u}:{p}@{h}/x"),
    "env_text": ("DB_PASSWORD=\nHOST=a", "DB_PASSWORD=blaubeere", "PASS=0\nFAIL=3", "KEY_FILE=/a/b\nHOST=a"),
    "email": (
        "you@example.com",
        "git@github.com:a/b.git",
        "logo@2x.png",
        "react@18.2.0",
        "@app.route",
        "noreply@acme.io",
    ),
    "phone": (
        "2024-01-02 03:04:05",
        "192.168.100.200",
        "1700000000",
        "978-3-16-148410-0",
        "1.234.567,89",
        "01.02.2024",
    ),
    "iban": ("DE89 3704 0044 0532 0130 01", "XX89370400440532013000", "USt-IdNr. DE123456789"),
    "card": ("4111111111111112", "94111111111111111", "4111 1111 1111 1111 1111 1111", "0.4111111111111111"),
}
#: recall and precision that each group keeps on the labelled texts; the measured figures are well above
FLOORS = {"local_only": (0.85, 0.90), "lan_ok": (0.85, 0.90)}
#: what has made patterns of this kind slow: repeats of what they begin with, and of what they repeat
ADVERSARIAL = (
    "a", "-", "1 ", "@", "A=", "A=\n", "\"'", "password=", 'password:"', "token = ", "AccountKey=", "eyJ",
    "-eyJ", "a@a.", "1-", "://a:", "-----BEGIN PRIVATE KEY-----\n", "sk-a-", "xoxb-1", "DE12 ", "4111 ",
    "12345678:", "login a ", "--a-", "secret:'-v", "password='<<", "\u200b", "\uff11", "+1", "(0",
    "1a1b1c1d-", "hooks.slack.com/services/T", "key", "a%40b.",
)  # fmt: skip


@pytest.mark.parametrize(("detector", "text"), [(name, text) for name, texts in FOUND.items() for text in texts])
def test_finds_what_is_there(detector: str, text: str) -> None:
    """Every detector finds its kind in ordinary and in slightly damaged writing."""
    assert detector in detect(text)


@pytest.mark.parametrize(("detector", "text"), [(name, text) for name, texts in NOT_FOUND.items() for text in texts])
def test_leaves_near_misses(detector: str, text: str) -> None:
    """No detector takes a placeholder, an example or another kind of number for its own."""
    assert detector not in detect(text)


def test_names_come_in_order() -> None:
    """A text with everything in it names every detector, in TIER_OF's order, and nothing that stood there."""
    assert detect("\n\n".join(text for texts in reversed(FOUND.values()) for text in texts)) == tuple(TIER_OF)


def test_tiers() -> None:
    """Secrets stay on this machine, personal data in the local network."""
    personal = {name for name, tier in TIER_OF.items() if tier == "lan_ok"}
    assert personal == {"email", "phone", "iban", "card"}
    assert {tier for name, tier in TIER_OF.items() if name not in personal} == {"local_only"}


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    """Any text at all is read without a fault, and the names found are known ones."""
    assert set(detect(text)) <= set(TIER_OF)


@given(st.integers(0, 10**14 - 1))
def test_card_check_digit(digits: int) -> None:
    """Of the ten last digits that a Visa number might have, exactly the one by Luhn makes it a card."""
    body = f"4{digits:014}"
    cards = [last for last in "0123456789" if "card" in detect(f"card {body}{last}.")]
    assert cards == [_luhn_digit(body)]


@given(st.integers(0, 10**18 - 1), st.sampled_from(["", " "]))
def test_iban_check_digits(account: int, blank: str) -> None:
    """The two check digits by ISO 7064 make an account number; those beside them do not."""
    body = f"{account:018}"
    check = 98 - int(body + "131400") % 97  # D is 13, E is 14, and the check digits count as zeros
    for digits, valid in ((check, True), (check % 97 + 2 if check != 98 else 50, check % 97 + 2 == check)):
        number = f"DE{digits:02}{body}"
        spaced = blank.join(number[i : i + 4] for i in range(0, len(number), 4))
        assert ("iban" in detect(f"Konto {spaced}, bitte")) is valid


@pytest.mark.parametrize("unit", ADVERSARIAL, ids=ascii)
def test_awkward_texts_end(unit: str) -> None:
    """A hundred kilobytes of what patterns find hardest is read to its end; one that backtracked would take hours."""
    assert set(detect(_repeated(unit, 100_000))) <= set(TIER_OF)


@pytest.mark.parametrize("unit", ["a", "-", "1 ", "@", "A=", "\"'", "0", "\n"], ids=ascii)
def test_a_megabyte_ends(unit: str) -> None:
    """A megabyte of one repeated thing is read to its end."""
    assert set(detect(_repeated(unit, 1_000_000))) <= set(TIER_OF)


@pytest.mark.parametrize("repeats", [1, 30_000])
def test_a_letter_of_many_marks_is_read(repeats: int) -> None:
    """Marks in another order than Unicode's are sorted, and a hundred thousand on one letter take no hours."""
    marks = "\u0301" * (60_000 // repeats) + "\u0316" * (60_000 // repeats)
    began = time.process_time()
    found = detect(f"Pass{marks * repeats}wort\npassword: Sonne#47")
    assert found == ("password",)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("many", ["\u0316" * 40, "\u2026" * 30, "\U0001f600" * 90], ids=["marks", "dots", "faces"])
def test_many_marks_change_nothing_else(many: str) -> None:
    """Letters behind many marks or signs are put together all the same, and nothing is added."""
    assert plain(f"{many}Mu\u0308ller") == f"{many}Müller"


@pytest.mark.parametrize("tier", FLOORS)
def test_quality_on_labelled_texts(tier: str) -> None:
    """On the labelled texts each group of detectors keeps its recall and precision."""
    group = [figure for name, figure in figures(labelled()).items() if TIER_OF[name] == tier]
    found = sum(figure.found for figure in group)
    recall = found / sum(figure.positives for figure in group)
    precision = found / (found + sum(figure.false_alarms for figure in group))
    assert recall >= FLOORS[tier][0]
    assert precision >= FLOORS[tier][1]


@pytest.mark.parametrize("detector", TIER_OF)
def test_each_detector_finds_most(detector: str) -> None:
    """Every detector has fifteen labelled texts or more and finds three quarters of them."""
    figure = figures(labelled())[detector]
    assert figure.positives >= 15
    assert figure.found >= 0.75 * figure.positives


def test_labelled_texts_are_balanced() -> None:
    """The labelled texts are many, differ, name known detectors, and near half of them hold nothing to find."""
    texts: list[Labelled] = labelled()
    assert len({entry.text for entry in texts}) == len(texts) >= 300
    assert {name for entry in texts for name in entry.detectors} == set(TIER_OF)
    assert 0.4 < sum(not entry.detectors for entry in texts) / len(texts) < 0.6


@pytest.mark.parametrize(
    "path",
    [
        "secret.txt", "conf/MySecrets.yaml", ".env", "app/.env.local", "prod.env", r"C:\app\.ENV",
        ".ssh/id_rsa", "/home/a/.ssh/config", "id_ed25519", "keys/id_ecdsa_work", "tls/server.key",
        "cert.PEM", "a.p12", "b.pfx", "c.kdbx", ".netrc", "~/.pgpass", ".aws/credentials",
        "release.keystore", "trust.jks", "server.key.bak", "\u200b.env", ".ssh\\known_hosts",
        ".git-credentials",
    ],
)  # fmt: skip
def test_paths_of_secrets(path: str) -> None:
    """Keys, key stores, environment files and login files are told by their names, however the path is written."""
    assert names_secret(path)


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "README.md", "src/environment.py", ".envoy.yaml", ".env.example", "env/bin/python",
        "keyboard.py", "monkey.txt", "id_rsa.pub", "docs/key.md", "pem.py", "sshd.md", "netrc.py",
        "tokenizer.json", "credentials_form.tsx",
    ],
)  # fmt: skip
def test_paths_of_nothing_secret(path: str) -> None:
    """Sources, public keys and templates are no secrets."""
    assert not names_secret(path)


def _luhn_digit(body: str) -> str:
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in body[::-2]]
    return str(-(sum(doubled) + sum(map(int, body[-2::-2]))) % 10)


def _repeated(unit: str, length: int) -> str:
    return (unit * (length // len(unit) + 1))[:length]
