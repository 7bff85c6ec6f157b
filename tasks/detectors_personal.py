"""Personal data in a text: mail addresses, telephone numbers, bank accounts, payment cards.

Numbers are told from other numbers by their own form: a card and an account carry check digits, a telephone
number a trunk or country prefix, separators, or a word such as "phone" before it.  Addresses at domains that
are reserved for examples, and logins of machines, are no person's.

A pattern is a string here and compiled on first use, which the standard library remembers: a start stays short.
"""

from __future__ import annotations

import re

_MAIL_AT = r"@(?<=[\w+'-]@)((?:[\w-]{1,63}\.){1,8}(?:[^\W\d_]{2,24}|xn--[\w-]{2,59}))(?![\w-]|\.\w)"
_NO_PERSON = (
    r"(?i)(?:[\w-]+\.)*(?:example\.(?:com|org|net|edu)|(?:your-?)?(?:domain|company)\.(?:com|tld)"
    r"|iam\.gserviceaccount\.com|\w+\.(?:example|test|invalid|localhost|local|localdomain|internal|lan|home|svc|service|socket|timer"
    r"|target|png|jpe?g|gif|svg|webp|pdf|js|ts|css|html|json|ya?ml|py|md|txt|tld))$"
)
_NO_MAILBOX = r"(?i)(?:://[^\s/?#]*|(?:^|[^\w.+-])(?:git|hg|svn|no-?reply|do-?not-?reply))$"
_REMOTE = r":(?:/|~|[\w.-]+/)"
_ABROAD = (
    r"(?:1[ .()-]{0,2}[2-9]|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|2[1-689]\d|3[578]\d|42\d|5[09]\d"
    r"|6[789]\d|8[058]\d|9[679]\d)(?:[ ./-]{0,2}[()]?[ ./-]?\d){7,12}"
)
_PHONE = (
    r"[+(0-9](?<!\w.)(?<![.-]\d)(?<!\d[ :/-].)(?!\d{4}-\d{4}(?!\d))"  # no US postal code
    rf"(?:(?<=\+){_ABROAD}|(?<=0)0[ ]?(?={_ABROAD})[\d()]+[ ./-][\d ()./-]{{6,16}}\d"
    rf"|(?<=\()\+{_ABROAD}|(?:(?<=\()0|(?<=0))[1-9]\d{{0,3}}\)?(?:[ ]?[/-][ ]?|[ .]|(?<=\)))\d{{2,8}}"
    r"(?:[ .-]\d{2,8})*|(?:(?<=1)[ .-]\(?[2-9]|(?<=\()[2-9]|(?<=[2-9]))\d\d(?:\)[ ]?|[.-])[2-9]\d\d[ .-]\d{4}"
    r"|(?<=1)[3-9]\d([ -])\d{4}\1\d{4}|(?<=\()\d\d\) ?9?\d{4}[ -]\d{4})(?!\w|[-.:/]\d)"
)
_DIALLED = r"[+(0-9](?<![\w.-].)[\d ()./-]{5,20}\d(?!\w|[-.:]\d)"
_DIAL_WORD = (
    r"(?i)(?:\btel|phone|fon|t[eé]l[eé]phone|tel[eé]fono?|mobil(?:e|nummer|telefon)?|móvil|cell|\bfax|handy|whatsapp"
    r"|rufnummer|durchwahl|\bgsm|電話(?:番号)?|电话|手机|전화)(?:[ _-]?(?:number|nummer|no|nr)\b)?[^\w\n]{0,5}$"
)
_DATED = r"[+(]?(?:(?:19|20)\d\d[-./ ]\d\d[-./ ]\d\d|\d\d?([-./])\d\d?\1(?:19|20)?\d\d(?!\1?\d))"
_DOTTED = r"[+(]?\d{1,3}(?:\.\d{1,3}){3}$"
_IBAN = r"[0-9](?<=(?<![A-Za-z0-9])[A-Za-z]{2}[0-9])[0-9](?:[ -]?[A-Za-z0-9]){11,30}"
_CARD = (
    r"[2-6](?<![\w.+-].)(?<!\d[ .-].)(?:\d{12,18}|\d{3}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{3}([ -])\d{6}\2\d{4,5})"
    r"(?!\w|[-.]\d|[ ]\d{4}(?!\d))"
)
_ISSUED = (
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|6(?:011|4[4-9]\d|5\d\d)\d{12,15}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
    r"|(?:50|5[6-8]|6304|6759|676[1-3])\d{10,17}"
)
_IBAN_LENGTHS = {
    code: length
    for length, codes in (
        (15, ["NO"]), (16, ["BE"]), (18, ["DK", "FI", "FO", "GL", "NL", "SD"]), (19, ["MK", "SI"]),
        (20, ["AT", "BA", "EE", "KZ", "LT", "LU", "XK"]), (21, ["CH", "HR", "LI", "LV"]),
        (22, ["BG", "BH", "CR", "DE", "GB", "GE", "IE", "ME", "RS", "VA"]),
        (23, ["AE", "GI", "IL", "IQ", "OM", "SO", "TL"]),
        (24, ["AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"]), (25, ["LY", "PT", "ST"]),
        (26, ["IS", "TR"]), (27, ["FR", "GR", "IT", "MC", "MR", "SM", "BI", "DJ"]),
        (28, ["AL", "AZ", "BY", "CY", "DO", "GT", "HU", "LB", "NI", "PL", "SV"]), (29, ["BR", "EG", "PS", "QA", "UA"]),
        (30, ["JO", "KW", "MU", "YE"]), (31, ["MT", "SC"]), (32, ["LC"]), (33, ["RU"]),
    )
    for code in codes
}  # fmt: skip


def email(text: str, lower: str) -> bool:
    text = text.replace("%40", "@")
    return "@" in text and any(_is_address(text, match) for match in re.finditer(_MAIL_AT, text))


def _is_address(text: str, match: re.Match[str]) -> bool:
    if re.match(_NO_PERSON, match[1]) or re.compile(_REMOTE).match(text, match.end()):
        return False
    # 64 characters are an address's longest local part
    return not re.search(_NO_MAILBOX, text[max(0, match.start() - 64) : match.start()])


def phone(text: str, lower: str) -> bool:
    other = re.sub(_IBAN, lambda match: "" if _is_account(match) else match[0], text)
    if any(_is_phone(match[0]) for match in re.finditer(_PHONE, other)):
        return True
    return any(_is_dialled(other, match) for match in re.finditer(_DIALLED, other))


def _is_phone(number: str) -> bool:
    groups = re.findall(r"\d+", number)
    digits = "".join(groups)
    if re.match(_DATED, number) or re.match(_DOTTED, number) or not 9 <= len(digits) <= 15:
        return False
    if number.startswith(("+", "(+")):
        return _is_abroad(groups, digits)
    pairs = all(len(group) == 2 for group in groups)
    return number.count("/") < 2 and (len(groups) == 5 or not pairs) and not (number[0] == "0" and len(digits) > 14)


def _is_abroad(groups: list[str], digits: str) -> bool:
    """Whether digits after a plus are a number to dial, and not an added line's figures."""
    if digits[0] == "1":
        return len(digits) == 11 and digits[1] > "1" and digits[4] > "1"
    if len(groups) == 1:
        return len(digits) >= 10
    thousands = all(len(group) == 3 for group in groups[1:])
    return max(map(len, groups)) > 2 - (len(groups) < 8) and (len(digits) > 10 or not thousands)


def _is_dialled(text: str, match: re.Match[str]) -> bool:
    """Whether a plain number stands right after a word such as "phone"."""
    count = sum(map(str.isdecimal, match[0]))
    before = text[max(0, match.start() - 24) : match.start()]
    return 7 <= count <= 15 and not re.match(_DATED, match[0]) and bool(re.search(_DIAL_WORD, before))


def iban(text: str, lower: str) -> bool:
    return any(map(_is_account, re.finditer(_IBAN, text)))


def _is_account(match: re.Match[str]) -> bool:
    return _is_iban(match.string[match.start() - 2 : match.end()])  # the country's letters stand before the match


def _is_iban(run: str) -> bool:
    """Whether `run` begins with an account number of its country's length whose remainder by 97 is 1."""
    length = _IBAN_LENGTHS.get(run[:2].upper(), 0)
    number = re.sub("[ -]", "", run)[:length]
    if not length or len(number) < length or len(re.split("[ -]", run, maxsplit=1)[0]) > length:
        return False
    return int("".join(str(int(char, 36)) for char in number[4:] + number[:4])) % 97 == 1


def card(text: str, lower: str) -> bool:
    return any(_is_card(re.sub("[ -]", "", match[0])) for match in re.finditer(_CARD, text))


def _is_card(digits: str) -> bool:
    """Whether a card's issuer gives out such numbers, and Luhn's check digit holds."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return bool(re.fullmatch(_ISSUED, digits)) and (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0
