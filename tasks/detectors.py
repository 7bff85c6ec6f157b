"""Secrets and personal data in a text: which kinds stand there, never what stood there.

A detector is pure, `(text, its lower case) -> bool`.  It looks for published token shapes, for values given to
names that say "secret", and for numbers whose own check digits hold.  A value that only marks a place (`<password>`,
`${TOKEN}`, `changeme`) is none.  A new detector is one function, one line of TIER_OF and one of _DETECTORS.
"""

from __future__ import annotations

import binascii
import json
import re
import unicodedata
from collections.abc import Callable
from functools import cache

from tasks.detectors_personal import card, email, iban, phone
from tasks.detectors_values import is_placeholder, password

#: detector name -> the tier it tightens a job to
TIER_OF: dict[str, str] = {
    "private_key": "local_only",
    "cloud_key": "local_only",
    "api_token": "local_only",
    "jwt": "local_only",
    "password": "local_only",
    "url_credentials": "local_only",
    "env_text": "local_only",
    "email": "lan_ok",
    "phone": "lan_ok",
    "iban": "lan_ok",
    "card": "lan_ok",
}

# A pattern is a string here and compiled on first use, which the standard library remembers: a start stays short.
# One that begins with a class or a letter is searched several times as fast as one that begins with a boundary;
# so the boundary stands after the first character: `x(?<!\w.)` is an x with no word before it.
_INVISIBLE = "\u00ad\u034f\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\ufeff"
_BLANK = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
_SAME = {
    _INVISIBLE: "",
    _BLANK: " ",
    "\u2010-\u2015\u2212\ufe63": "-",
    "\u0085\u2028\u2029": "\n",
    "\u201c-\u201f": '"',
    "\u2018-\u201b": "'",
    "\u0130": "I",  # the one capital whose small form is two characters
}
_FULL_WIDTH = "\uff01-\uff5e"
_ODD = f"[{''.join(_SAME)}{_FULL_WIDTH}]"
#: as many marks as one letter has in any language (UAX 15, stream-safe text); sorting more takes time by their square
_MANY_MARKS = r"[^\x00-\u02ff\w]{30}"

#: a digit in a run of 20 characters, wherever in it, as in keys and tokens of any make; or seven digits together
_RUN = r"[\w/+=.~-]"
_LONG = (
    rf"[0-9](?:(?={_RUN}{{15}})|(?<={_RUN}{{5}}[0-9])(?={_RUN}{{10}})|(?<={_RUN}{{10}}[0-9])(?={_RUN}{{5}})"
    rf"|(?<={_RUN}{{15}}[0-9])|(?:[ ().\-/]{{0,3}}[0-9]){{6}})"
)
_ON_LONG_LINES = ("cloud_key", "api_token", "jwt", "phone", "iban", "card")
_KEY_BEGIN = r"begin (?:[a-z0-9]+ ){0,3}private key(?: block)? ?-{2,}"
_KEY_HEADER = r"(?m)^[\w-]{1,30}: .*$|\\[nrt]"
_KEY_BODY = r"(?=[A-Za-z+/]{0,60}\d)(?=[\da-z+/]{0,60}[A-Z])[A-Za-z0-9+/]{24}"
_OTHER_KEY = r"AGE-SECRET-KEY-1[A-Z0-9]{40}|PuTTY-User-Key-File-\d:[^\0]{0,900}\nPrivate-Lines:"
_CLOUD_KEY = (
    r"A(?<![A-Za-z0-9].)[KS]IA(?![A-Z2-7]{9}EXAMPLE)[A-Z2-7]{16}(?![A-Za-z0-9])|AIza[\w-]{35}|GOCSPX-[\w-]{28}"
    r"|ya29\.[\w-]{40}|LTAI[A-Za-z0-9]{20}|8Q~(?<=[\w.~-]{3}8Q~)[\w.~-]{31}"
)
_CLOUD_VALUE = (
    r"(?i)aws.{0,20}secret(?:.?access)?.?key[\"']?\s{0,4}(?:=>?|:)\s{0,4}[\"']?(?![\w/+]{30}EXAMPLEKEY)"
    r"[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])|(?:account|sharedaccess)key\s{0,2}=\s{0,2}[A-Za-z0-9+/]{43,90}="
    r"|[?&;]sig=[\w%+/-]{43}"
)
#: the search stops only at the sign that ends a token's prefix, looks back at the prefix, then at what follows
_TOKEN = (
    r"[_.-](?=[\w-]{16})(?:(?<=gh[pousr]_)[A-Za-z0-9]{30,}|(?<=[bkr]_pat_)\w{20,}|(?<=gl[a-z]{3}-)[\w-]{20,}"
    r"|(?<=gl[dfr]t-)[\w-]{20,}|(?<=xox[abeoprs]-)[\w-]{10,}|(?<=xapp-)\d-[\w-]{20,}|(?<=xai-)[A-Za-z0-9]{60,}"
    r"|(?<=\b[rs]k_(?:live|test)_)[A-Za-z0-9]{16,}|(?<=\bsk-)(?:ant-\w{1,12}-[\w-]{20,}|(?:\w{1,10}-){0,3}\w{20,})"
    r"|(?<=\bhf_)[A-Za-z0-9]{30,}|(?<=npm_)[A-Za-z0-9]{36}|(?<=pypi-)Ag[\w-]{40,}|(?<=whsec_)\w{24,}"
    r"|(?<=shp[a-z]{2}_)[a-f0-9]{32}|(?<=do[opr]_v1_)[a-f0-9]{64}|(?<=lin_api_)\w{32,}|(?<=gsk_)[A-Za-z0-9]{40,}"
    r"|(?<=glsa_)\w{32,}|(?<=\bkey-)[0-9a-f]{32}(?!\w)|(?<=NRAK-)[A-Z0-9]{27}|(?<=hvs\.)[\w-]{24,}"
    r"|(?<=SG\.)[\w-]{16,32}\.[\w-]{30,64}|(?<=rubygems_)[a-f0-9]{48})"
    r"|:(?<=\d{8}:)[A-Za-z0-9_-]{35}(?![\w-])|\.(?<=[\w-]{23}\.)[\w-]{6}\.[\w-]{27,38}(?![\w-])"
)
_HOOK = r"hooks\.slack\.com/services/T\w+/B\w+/\w{20,}|discord(?:app)?\.com/api/webhooks/\d{17,20}/[\w-]{50,}"
_SHAPED = r"S(?<!\w.)K[0-9a-f]{32}(?!\w)|ATATT3x[\w=-]{50,}|d(?<!\w.)api[a-f0-9]{32}"
_JWT = r"e(?<![\w-].)(?:yJ|yA|wo|wk)([\w-]{8,})\.[\w-]{2,}\.[\w-]{10,}"
_URL_LOGIN = r"://(?P<user>[^\s:/@?#\"'<>]{0,100}):(?P<bare>[^\s/@\"'<>]{1,200})@[\w\[$]"
_ENV_LINE = r"\n[ \t]{0,8}(?:export[ \t]|set[ \t]|ENV[ \t]|-[ \t])?[\"']?([A-Z_][A-Z0-9_]{0,60})=(.*)"
_SECRET_NAME = (
    r"(?:^|_|API|DB)(?:KEY|TOKEN|SECRET|PASS(?:WORD|WD|PHRASE)?|PWD|CREDENTIALS?|DSN)"
    r"(?:_(?:BASE|BASE64|B64|VALUE|PROD|DEV|STAGING|LIVE|TEST)|_?\d)?$"
)

_AFTER = r"(?:\.(?:bak|backup|old|orig|save|swp)|~)?"
_SECRET_PATH = (
    r"(?s).*secret|(?:.*/)?\.(?:ssh|gnupg)(?:/|$)|(?:.*/)?(?:(?:[^/]*\.)?env|\.env\.(?!example|sample|template|dist"
    r"|schema)[^/]+|\.envrc|id_(?:rsa|dsa|ecdsa|ed25519|xmss)(?![^/]*\.pub)[^/]*|[^/]*\.(?:pem|key|p12|pfx|p8|ppk|kdbx?|keystore"
    r"|jks|keytab|agekey|ovpn)|[._]netrc|\.?pgpass(?:\.conf)?|\.?(?:git-)?credentials?(?:\.\w+)?|\.npmrc|\.pypirc"
    rf"|\.my\.cnf|\.htpasswd|\.vault[-_]token|\.dockercfg|\.docker/config\.json|\.kube/config|etc/shadow){_AFTER}$"
)


def detect(text: str) -> tuple[str, ...]:
    """The names of the detectors that find something, in TIER_OF's order."""
    read = plain(text)
    lower = read.lower()
    long = _lines_with(_LONG, read)
    parts = {name: long if name in _ON_LONG_LINES else read for name in TIER_OF}
    return tuple(name for name, part in parts.items() if part and _DETECTORS[name](part, lower))


def names_secret(path: str) -> bool:
    """Whether a path by its name holds secrets: keys, key stores, environment files, logins."""
    folded = plain(path).strip(" \t\r\n\"'`").replace("\\", "/").rstrip("/").lower()
    return bool(re.match(_SECRET_PATH, folded))


def plain(text: str) -> str:
    """`text` without invisible characters, and with plain blanks, dashes, quotes and full-width letters.

    Letters and their marks are one character (NFC): macOS takes them apart in file names.
    """
    if text.isascii():
        return text
    apart = re.sub(_MANY_MARKS, "\\g<0>\u034f", text)  # which is invisible, and taken out below
    return re.sub(_ODD, lambda match: _usual(match[0]), unicodedata.normalize("NFC", apart))


def _lines_with(pattern: str, text: str) -> str:
    """Those lines of `text` that hold the pattern; the slower patterns need no others."""
    search, lines, start = re.compile(pattern).search, [], 0
    while found := search(text, start):
        start = text.find("\n", found.end()) + 1 or len(text)
        lines.append(text[text.rfind("\n", 0, found.start()) + 1 : start])
    return "".join(lines)


@cache
def _usual(odd: str) -> str:
    if re.match(f"[{_FULL_WIDTH}]", odd):
        return chr(ord(odd) - 0xFEE0)  # these forms follow ASCII's order
    return next(usual for kind, usual in _SAME.items() if re.match(f"[{kind}]", odd))


def _private_key(text: str, lower: str) -> bool:
    if ("private-lines" in lower or "age-secret-key" in lower) and re.search(_OTHER_KEY, text):
        return True
    # 600 characters reach past the longest usual headers to the first line of the key itself
    bodies = (re.sub(_KEY_HEADER, "", text[m.end() : m.end() + 600]) for m in re.finditer(_KEY_BEGIN, lower))
    return any(re.match(_KEY_BODY, body.lstrip(" \t\r\n\"'`+,|>;")) for body in bodies)


def _cloud_key(text: str, lower: str) -> bool:
    named = any(name in lower for name in ("aws", "accountkey", "accesskey", "sig="))
    return _random_match(_CLOUD_KEY, text) or (named and _random_match(_CLOUD_VALUE, text))


def _api_token(text: str, lower: str) -> bool:
    shaped = _random_match(_TOKEN, text) or _random_match(_SHAPED, text)
    return shaped or ("hooks" in lower and _random_match(_HOOK, text))


def _jwt(text: str, lower: str) -> bool:
    return any(_is_jwt_header(match[0].partition(".")[0]) for match in re.finditer(_JWT, text))


def _is_jwt_header(part: str) -> bool:
    padded = part.replace("-", "+").replace("_", "/") + "=" * (-len(part) % 4)
    try:
        header = json.loads(binascii.a2b_base64(padded))
    except ValueError:
        return False
    return isinstance(header, dict) and "alg" in header


def _url_credentials(text: str, lower: str) -> bool:
    if "://" not in text:
        return False
    return any(not is_placeholder(m["bare"]) for m in re.finditer(_URL_LOGIN, text))


def _env_text(text: str, lower: str) -> bool:
    if not re.search("=(?<=[A-Z0-9_]{3}=)", text):
        return False
    lines = re.findall(_ENV_LINE, "\n" + text)
    return len(lines) > 1 and any(re.search(_SECRET_NAME, name) and _is_setting(value) for name, value in lines)


def _is_setting(value: str) -> bool:
    """Whether an environment variable's value may be secret: no placeholder, path or small number."""
    bare = value.strip().strip("\"'")
    small = len(bare) < 4 or (bare.isdecimal() and len(bare) < 6)
    return not small and not is_placeholder(bare) and not re.match(r"[.~]{0,2}/|[A-Za-z]:\\", bare)


def _random_match(pattern: str, text: str) -> bool:
    return any(_is_random(match[0]) for match in re.finditer(pattern, text))


def _is_random(token: str) -> bool:
    """Whether what follows a token's prefix is no row of x's or words: digits, and 8 characters that differ."""
    tail = token[-24:]
    mixed = any(map(str.isdecimal, token)) and len(set(tail.lower())) > 7
    return mixed and not re.search("(?i)your|example|xxxx", token)


_DETECTORS: dict[str, Callable[[str, str], bool]] = {
    "private_key": _private_key,
    "cloud_key": _cloud_key,
    "api_token": _api_token,
    "jwt": _jwt,
    "password": password,
    "url_credentials": _url_credentials,
    "env_text": _env_text,
    "email": email,
    "phone": phone,
    "iban": iban,
    "card": card,
}
