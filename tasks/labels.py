"""The labels that a classification prompt offers, found in its own words."""

from __future__ import annotations

import re

#: characters at each end of a prompt that are searched for offered labels; the middle is the subject matter
_SEARCHED = (8_000, 4_000)
_NOUN = r"(?:labels?|categor(?:y|ies)|class(?:es)?|tags?|options?|choices?|values?|answers?|types?|topics?)"
_LEAD = r"(?:the|these|this|following|possible|allowed|valid|available|exactly|only)"
_CUE = r"(?:classif|categori|label|tag|mark|answer|reply|respond|say|return|output|choose|pick|select|decide)"
#: what comes right before a list of labels, the plainest first
_OFFERS = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        rf"\bone of(?:\s+(?:{_LEAD}|{_NOUN}))*\s*:",
        rf"\bone of(?:\s+(?:{_LEAD}|{_NOUN}))*\s*(?=[\[({{])",
        rf"(?:^[#* \t]{{0,9}}|[.!?]\s+|\b(?:use|with|into|your|{_LEAD})\s+)(?:(?:{_LEAD})\s+)*{_NOUN}"
        r"(?:\s*\([^)\n]{0,40}\)|(?:\s+(?:are|is|to use|to choose from))+)?\**\s*:\**",
        r"\b(?:choose|pick|select)(?:\s+\w+){0,2}\s+(?:from|between|among)\b\s*:?",
        rf"^#+\s*{_NOUN}\s*$",
        rf"\bwhich\s+{_NOUN}\b[^\n:.?!]{{0,40}}:",
        r"\b(?:classify|categori[sz]e|label|tag|mark|rate|sort|triage)\b"
        r"(?![^\n:]{0,60}\bas\s+\w+\s+as\b)[^\n:.?!]{0,80}?"
        r"\b(?:as|into)\b(?:\s+follows)?(?:\s+one\s+of)?\s*:?",
        rf"\b{_CUE}[^\n.?!]{{0,80}}?\beither\b",
        r"\beither\b(?=[^\n.?!:]{1,60}\?)",
        r"\beither\b(?=\s*[\"“'`])",
    )
)
#: offers that are a list of single words or no offer at all
_BARE = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\bone of\s+(?!the\b|th[eo]se\b|them\b|my\b|our\b|your\b|its\b|his\b|her\b|us\b)",
        rf"\bone of(?:\s+{_LEAD})*\s+{_NOUN}\s",
    )
)
#: offers of single words joined by "or", as anything else is an instruction about form
_WORD = r"(?:an?\s+)?[\"“'`]?(?!one\b|it\b|not\b)\w[\w-]*[\"”'`]?"
_WORDS = rf"({_WORD}(?:\s*,\s*{_WORD})*\s*,?\s+or\s+{_WORD})"
_BRIEF = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b(?:answer|reply|respond)\s+(?:(?:with|just|only|either)\s+)+(?!an?\s){_WORDS}\s*(?:[.:!;\n]|only|$)",
        r"\b(?:answer|reply|respond)\s+(?:just\s+|only\s+)?(yes\s*,?\s*(?:or|/)\s*no)\b",
        rf"\b(?:answer|reply|respond)\b[^\n.?!:]{{0,60}}:\s*{_WORDS}\s*(?:[.;\n]|$)",
        rf"^\s*either\s+{_WORDS}\s*(?:[.:;\n]|$)",
        rf"\bis\s+(?:this|it|that|the\s+following)(?:\s+\w+)??\s+{_WORDS}\s*\?",
    )
)
_CHOICE = re.compile(r"[(\[<{]\s*([\w-]+(?:\s*[/|]\s*[\w -]*[\w-])+)\s*[)\]>}](\s*[:?])?")
_CHOICE_CUE = re.compile(rf"{_CUE}|sentiment|\bis (?:this|it)\b|\bwhich\b", re.IGNORECASE)
_BULLET = re.compile(r"[ \t]*(?:[-*•+]|\d+[.)])[ \t]+(.+)")
_SENTENCE_END = re.compile(r"[.?!;:](?=[\s\"”)]|$)|\n|\s[—\u2013-]+\s")
_OPEN_END = re.compile(r"\betc\b|\.\.\.|…|\be\.g\.|\bsuch as\b", re.IGNORECASE)
#: words about the form of the answer: the labels end before them
_FORM = re.compile(
    r"(?<![\w-])(?:words?|sentences?|lowercase|uppercase|labels?|explanations?|punctuation|nothing else|only"
    r"|please|answer|reply|respond|return|output|if|then|based|depending|according)(?![\w-])",
    re.IGNORECASE,
)
_TRAILING = re.compile(
    r"\s+(?:the|this|that|these|each|it|based|depending|according|given|for|from|by|using"
    r"|in (?:the|this)|with)\b.*",
    re.IGNORECASE | re.DOTALL,
)
_LABEL = re.compile(r"[\w+#&<>=][\w +#&./'\u2019<>=:-]{0,39}")
_QUOTED = re.compile(r"[\"“]([^\"”\n]{1,40})[\"”]|(?<!\w)'([^'\n]{1,40})'(?!\w)|`([^`\n]{1,40})`")
_DETERMINED = re.compile(r"(?:the|my|our|your|we|you|they|it|its|to)\s", re.IGNORECASE)
#: what local models dress a label in
DRESS = " \t\r\n\"'“”\u2018\u2019«»`*"


def offered_labels(prompt: str) -> list[str]:
    """The labels a classification prompt offers, in its order; [] when none are clearly offered.

    Reads lists after "one of", "labels:", "choose from", "classify … as", "either", choices in brackets
    as "(spam/ham)", and bullets under a heading of these.  Careful rather than clever: labels read where
    none were meant would fail good answers, labels missed only make the check weaker.
    """
    head, tail = _SEARCHED
    text = prompt if len(prompt) <= head + tail else f"{prompt[:head]}\n\n{prompt[-tail:]}"
    for offer in _OFFERS:
        for match in offer.finditer(text):
            if labels := _list_at(text, match.end()):
                return labels
    for offer in _BARE:
        for match in offer.finditer(text):
            labels = _list_at(text, match.end())
            if labels and all(" " not in label for label in labels):
                return labels
    for brief in _BRIEF:
        for match in brief.finditer(text):
            if labels := _distinct(_split(match[1])):
                return labels
    return _bracketed(text)


def _list_at(text: str, start: int) -> list[str]:
    """The labels of the list at `start`: in brackets, as bullets, or inline to the sentence's end."""
    rest = text[start : start + 2_000]
    bare = rest.lstrip(" \t*")
    closer = {"[": "]", "(": ")", "{": "}", "<": ">"}.get(bare[:1])
    if closer and closer in bare:
        return _distinct(_split(bare[1 : bare.index(closer)]))
    if bare.startswith(("\n", "\r")):
        return _distinct(_bullets(bare))
    if _QUOTED.match(bare):
        line = bare.split("\n", 1)[0]
        return _distinct(_quoted(line))
    end = _SENTENCE_END.search(bare)
    inline = bare[: end.start()] if end else bare
    return [] if _OPEN_END.search(bare[: len(inline) + 4]) else _distinct(_split(inline))


def _bullets(text: str) -> list[str]:
    """The heads of the bullets that follow at once: `- **bug**: something broke` offers bug."""
    labels = []
    for line in text.strip("\r\n").splitlines():
        bullet = _BULLET.match(line)
        if not bullet:
            break
        labels.append(re.split(r":\s|\s[—\u2013-]+\s|\s\(|:?\*\*:?\s|:$", bullet[1].strip(), maxsplit=1)[0])
    return labels


def _quoted(line: str) -> list[str]:
    """The quoted strings from the start of `line` on, as long as little but commas stands between them."""
    labels: list[str] = []
    at = 0
    for match in _QUOTED.finditer(line):
        if match.start() - at > 6:
            break
        labels.append(next(group for group in match.groups() if group))
        at = match.end()
    return labels


def _split(inline: str) -> list[str]:
    """The items of a list written in a line, up to the first that speaks of the answer's form."""
    inline = re.sub(r"\([^)]*\)", "", inline)
    if "|" in inline:
        items = inline.split("|")
    else:
        items = re.split(r"\s*,\s*(?:(?:or|and)\s+)?|\s+or\s+", inline.strip())
        if not re.search(r"\sor\s", inline):
            items[-1:] = re.split(r"\s+and\s+", items[-1])
        if len(items) == 1:
            items = items[0].split("/")
    form = next((at for at, item in enumerate(items) if _FORM.search(item)), len(items))
    items = items[:form]
    return [*items[:-1], _TRAILING.sub("", items[-1])] if items else []


def _distinct(items: list[str]) -> list[str]:
    """The items, bare of quotes and articles, if they are at least two, short and label-like; else []."""
    bare = [re.sub(r"^an?\s+", "", item.strip(DRESS).rstrip(".").strip(DRESS)) for item in items]
    labels = list(dict.fromkeys(label for label in bare if label))
    plausible = all(_LABEL.fullmatch(label) and len(label.split()) <= 4 for label in labels)
    return labels if plausible and not any(map(_DETERMINED.match, labels)) and 2 <= len(labels) <= 100 else []


def _bracketed(text: str) -> list[str]:
    """A choice such as (spam/ham), where a colon or question mark follows or the line asks for a choice."""
    for match in _CHOICE.finditer(text):
        line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        if (match[2] or _CHOICE_CUE.search(line)) and match[1].lower() not in {"and/or", "s/he"}:
            return _distinct(re.split(r"\s*[/|]\s*", match[1]))
    return []
