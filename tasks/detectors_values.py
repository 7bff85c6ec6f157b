"""Passwords and tokens given to a name: in code, settings, command lines, headers, mails.

Names such as "token" are common in code, so a value has to look the part: a password in quotes may be a word,
an unquoted one carries digits or signs, a token looks random.  A value that only marks a place is none.

A pattern is a string here and compiled on first use, which the standard library remembers: a start stays short.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

_SEP = r"[\"'`\])*_]{0,4}\s{0,3}(?:\|\||=>|->|[=!]==?|:?=|:|\|(?=\s))[*_]{0,2}"
_TYPE = r"(?:[ \t]?:[ \t]?[&\w<>\[\]|. ]{1,30}(?==))?"
_VALUE = (
    r"\s{0,8}(?:[fbruL@]{0,2}\\?(?P<quote>[\"'`])(?P<quoted>(?:(?!\\?(?P=quote))[^\n]){1,200})\\?(?P=quote)"
    r"|(?P<bare>[^\s\"'`<>,;&|][^\s\"'`,;&|<]{3,200}))"
)
_STEM_TAIL = (
    r"(?:(?i:w(?:or[dt]|d)|phrase|code)|(?<=[Dd]e pass)e|(?<=[_\"'`.-]pass)|(?<=\npass)|(?<=[a-z]Pass)|(?<=_PASS)"
    r"|(?<=pwd)|(?<=PWD)|(?<=Pwd)|(?<![pP][aA][sS][sS]))\d?"
)
_IS = r"(?i: (?:is|was|lautet|ist|est|es|remains)\b:?)"
_PASS = (
    rf"{_STEM_TAIL}(?:{_TYPE}{_SEP}|\((?=[\"'])|[\"'] value=(?=[\"'])|>(?=[^\s<]{{4,64}}</)"
    rf"|[\"'`*]{{0,2}}{_IS}[*]{{0,2}}){_VALUE}"
)
#: what a program falls back on: `getenv("DB_PASSWORD", "...")`
_FALLBACK = rf"{_STEM_TAIL}[\"'],(?=\s?[\"']){_VALUE}"
#: a variable of a shell, where the value may be any word
_VARIABLE = r"(?:WOR[DT]|WD|PHRASE|(?<![A-Z]PASS))(?<=[A-Z])\d?=[\"']?(?P<bare>[^\s\"'`,;&|<]{4,200})"
#: up to 40 characters between the word and what it is: "password for the staging box is ..."
_PASS_OF = rf"{_STEM_TAIL}[ \t(][\w ()/.-]{{1,40}}?(?::|{_IS})[*]{{0,2}}{_VALUE}"
_TOKEN_SET = (
    rf"(?<!ublicKeyToken)(?i:[-_ ]?(?:key|token|value))?(?:{_TYPE}{_SEP}"
    rf"|[\"'],(?=\s?[\"'])|>(?=[^\s<]{{8,200}}</)|{_IS}){_VALUE}"
)
_KEY_KINDS = ("api", "access", "auth", "encryption", "signing", "private", "master", "account", "service", "shared")
_NAME = r"(?:pass(?:word|wd|phrase)?|pwd|token|secret|api-?key)"
_OPTION = rf"--(?:\w{{1,20}}-){{0,3}}(?i:{_NAME})[ \t]{{1,4}}(?!-){_VALUE}"
_LOGIN = rf"login\s{{1,4}}\S{{1,64}}\s{{1,4}}{_NAME}[ \t]{{1,4}}{_VALUE}"
_AUTHORIZED = (
    r"(?:[\"']?\s{0,2}[:=]\s{0,2}[\"']?(?i:basic|token|apikey|digest|key))?[ \t:=\"']{1,4}(?P<bare>[\w.~+/=-]{8,400})"
)
_IDENTIFIED = r"(?i)identified by(?: password)? (?P<quote>['\"])(?P<quoted>[^'\"\n]{4,100})(?P=quote)"
_PASS_STEMS = ("pass", "pwd", "kennwort", "contraseña", "senha", "wachtwoord", "lösenord", "hasło")
_PASS_STEMS_FAR = ("пароль", "密码", "密碼", "パスワード", "비밀번호")
_TOKEN_STEMS = ("secret", "token", "credential")

_PLACEHOLDER = (
    r"(?i)[\W_]*$|\([\w .]+\W*$|(?:[$%@:]|\$env:)[a-z_]\w*%?$|\$[({\d]|%[sd(]|\{|.{0,64}(?:x{4}|\*{3}|\.{3}|…|[•●]{2}"
    r"|_{4}|[\[{<]\s?[\w .:-]+\s?[\]}>]|\bx{3}\b|your|change.?(?:me|it|this)|replace|placeholder|example|sample|dummy"
    r"|redact|masked|hidden|insert|todo|fixme|fake|goes.?here|environ|getenv|\benv[.(]|keyref|not.?real|xyz$|!vault|enc\["
    r"|op://)"
    r"|(?:none|null|nil|undefined|true|false|required|optional|nullable|string|str|text|bytes|number|invalid|wrong"
    r"|incorrect|missing|empty|hashed|encrypted|unknown|default|sensitive|confirmed|admin|root|username|login|test"
    r"|testing|value|data|email|name|user|type|sms|auto|prompt|basic|bearer|foo|foobar|abc|abc123|submit|reset)\W*$"
    r"|[a-z_.\- :]*(?:pass|pwd|secret|token|key|credential|contrase|kennwort|wachtwoord|senha)[a-z_.\- :]*\d?\W*$"
)
_CODE = (
    r"(?i)[&*!~@-]{0,2}[a-z_][\w$]*(?:(?:\.|::|->|\?\.)[a-z_][\w$]*)+[!?;,)\]}]*$|[&*!]?[a-z_][\w.:>?-]*[(\[{]"
    r"|(?:param|arg|argv|value|input|string|text|field|var|u?int|float|sha|md|base|utf|oauth|argon|h?mac|level)s?_?\d+"
    r"\W*$|[.~]{0,2}/|[a-z]:\\|\w+://|\d{4}-\d\d-\d\d|\d+(?:\.\d+)+$|[+-]?\d+[a-z]{0,3}$(?<!\d{6})"
)
_WORDS = r"[A-Za-z]+(?:[-_./:][A-Za-z]*\d{0,2})*$"


def password(text: str, lower: str) -> bool:
    """A value that says it is a password, token, secret or key."""
    ends = [*_ends(lower, _PASS_STEMS), *_ends(lower, _PASS_STEMS_FAR)]
    for pattern, test in _PASS_TESTS if ends else ():
        match = re.compile(pattern).match
        if any(_holds(match(text, end), test) for end in ends):
            return True
    return any(_holds(match, _is_token) for match in _tokens(text, lower)) or _handed_over(text, lower)


def is_placeholder(value: str) -> bool:
    """Whether a value only marks the place of one; of a long value the first 64 characters say so."""
    return bool(re.match(_PLACEHOLDER, value[:64]))


def _tokens(text: str, lower: str) -> Iterator[re.Match[str] | None]:
    match = re.compile(_TOKEN_SET).match
    yield from (match(text, end) for end in _ends(lower, _TOKEN_STEMS))
    yield from (match(text, end) for end in _ends(lower, ("key",)) if _is_key_to_something(lower, end))


def _is_key_to_something(lower: str, end: int) -> bool:
    """Whether "key" is part of "api_key" and the like, not of "primary key"."""
    return lower[max(0, end - 14) : end - 3].rstrip("-_ ").endswith(_KEY_KINDS)


def _handed_over(text: str, lower: str) -> bool:
    """Passwords and tokens in a command line, a header, a login file or SQL."""
    if any(_holds(m, _is_password) for given in (_OPTION, _LOGIN) for m in re.finditer(given, text)):
        return True
    header = re.compile(_AUTHORIZED).match
    if any(_holds(header(text, end), _is_mixed) for end in _ends(lower, ("bearer", "authorization"))):
        return True
    return "identified" in lower and any(_holds(m, _is_password) for m in re.finditer(_IDENTIFIED, text))


def _ends(lower: str, stems: tuple[str, ...]) -> Iterator[int]:
    """Where each occurrence of a stem ends."""
    for stem in stems:
        at = lower.find(stem)
        while at >= 0:
            yield at + len(stem)
            at = lower.find(stem, at + len(stem))


def _holds(match: re.Match[str] | None, test: Callable[[str, bool], bool]) -> bool:
    """Whether the value that a pattern found is no placeholder and passes `test`, which is told of quotes."""
    if not match:
        return False
    found = match.groupdict()
    value = found.get("quoted") or (found.get("bare") or "").rstrip(".,:;?)]}*|")
    return not is_placeholder(value) and test(value, bool(found.get("quoted")))


def _is_password(value: str, quoted: bool) -> bool:
    if quoted:
        return len(value) > 3 and not re.search(r"\s|://|^[./]", value)
    if value.isdecimal():
        return len(value) > 5
    marked = re.search(r"[\d!#$%^&*?@~+]", value) and re.search(r"[^\W\d_]", value)
    return len(value) > 5 and bool(marked) and not re.match(_CODE, value)


def _is_word(value: str, quoted: bool) -> bool:
    return not value.isdecimal() and not re.match(_CODE, value)


def _is_marked(value: str, quoted: bool) -> bool:
    """A password told from a word by its digits or signs."""
    return _is_password(value, False)


def _is_token(value: str, quoted: bool) -> bool:
    """A token, key or secret, whose names are common in code, has to look random."""
    if len(value) < 8 or re.search(r"\s|://", value) or re.match(_WORDS, value) or re.match(_CODE, value):
        return False
    digits = sum(map(str.isdecimal, value))
    marked = quoted or (len(value) > 11 and digits > 1) or bool(re.search("[!#$%^&*?]", value))
    return marked and 0 < digits < len(value)


def _is_mixed(value: str, quoted: bool) -> bool:
    """Three of small and capital letters, digits and signs, as no word of a sentence has; of a long value two."""
    if len(value) < 6 or re.search(r"\s|://", value) or re.match(_CODE, value):
        return False
    kinds = sum(bool(re.search(kind, value)) for kind in (r"[a-z]", r"[A-Z]", r"\d", r"[^\w\s'-]"))
    return kinds > 2 or (kinds > 1 and len(value) > 19)


_PASS_TESTS = ((_PASS, _is_password), (_PASS_OF, _is_mixed), (_VARIABLE, _is_word), (_FALLBACK, _is_marked))
