"""Named checks on a model's text: is this a plausible answer of its kind at all?

A check is pure, `(output, prompt) -> None | reason`; the reason never quotes the output or the prompt.
Checks are lenient about how local models dress a good answer (quotes, bold, one fence around it, a full
stop) and catch only what is clearly no answer.  A new check is one function and one line of CHECKS.
"""

from __future__ import annotations

import re
from collections.abc import Callable

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
_DRESS = " \t\r\n\"'“”\u2018\u2019«»`*"


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
    bare = [re.sub(r"^an?\s+", "", item.strip(_DRESS).rstrip(".").strip(_DRESS)) for item in items]
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


Check = Callable[[str, str], str | None]

_FENCE_LINE = re.compile(r"^[ \t]*```", re.MULTILINE)
_TEXT_FENCE = re.compile(r"\s*```(?:text|txt|markdown|md|plaintext)?[ \t]*\n")
_DO = (
    r"(?:assist|help|provide|fulfil|comply|answer|do (?:that|this)|create|generate|write|access"
    r"|process|complete|translate|rewrite|summari[sz]e|extract|classify|explain)"
)
_APO = r"['\u2019]"
_AN_AI = r"as an? (?:AI|large language model)\b[^,\n]{0,30}, I\b"
_REFUSAL = re.compile(
    rf"\W{{0,20}}(?:(?:I{_APO}m|I am)(?: \w+)? sorry\b|sorry,|I apologi[sz]e\b|{_AN_AI}|(?:unfortunately,? )?"
    rf"(?:I (?:can{_APO}?t|cannot|can not|won{_APO}t|am (?:unable|not able) to)|I{_APO}m unable to) {_DO})",
    re.IGNORECASE,
)
#: in a translation an apology may be the text itself; only one about the task is a refusal
_TASK_REFUSAL = re.compile(
    rf"\W{{0,20}}(?:{_AN_AI}|[^.\n]{{0,40}}\b(?:can{_APO}?t|cannot|unable to|won{_APO}t) "
    r"(?:translate|rewrite|rephrase|(?:assist|help)(?: you)? with (?:that|this)))",
    re.IGNORECASE,
)
_PREAMBLE = re.compile(
    r"\W{0,20}(?:(?:sure|certainly|of course|absolutely|okay|ok|yes)\b[^\n:.!]{0,40}[.!,:]*\s*)?"
    rf"(?:(?:here(?:{_APO}s| is| are)?|below|the following|I(?:{_APO}ve| have)|let(?: me|{_APO}s)|to \w+)\b"
    r"[^\n:]*:\**)?",
    re.IGNORECASE,
)
_COMMIT_PREAMBLE = re.compile(
    rf"\W{{0,20}}(?:here(?:{_APO}s| is| are)\b|(?:sure|certainly|of course)[,!.]"
    r"|commit (?:message|subject)\s*:)",
    re.IGNORECASE,
)
_VERSION_PREAMBLE = re.compile(
    rf"\W{{0,20}}(?:(?:sure|certainly|of course)\b[^\n:]{{0,30}})?here(?:{_APO}s| is| are)\b[^\n:]{{0,80}}"
    r"(?:translat|version|rewrit|revis|rephras|polish|improv)[^\n]{0,80}:",
    re.IGNORECASE,
)
_NAME = re.compile(r"[^\W\d][\w$.:/@-]{0,79}[!?]?(?:\(\))?|[$@_][\w$.-]{1,79}")
_STRUCTURE = re.compile(
    r"\s*(?:(?:async |pub |export |static |public |private |protected )*"
    r"(?:def |class |fn |func |function |import |from \S+ import|let |const |var |struct |impl |enum "
    r"|return\b|#include|package \w+;?$|using \w[\w.]*;|SELECT |INSERT INTO |CREATE |UPDATE \w+ SET )"
    r"|(?:if|for|while|switch)\b.*[:{]\s*$|[\w.]+\(.*\)\s*;?\s*$|[\w.\[\]]+ [-+*/]?=\s\S|[@}{]|</?\w+[^>]*>)"
    r"|.*[;{}]\s*$"
)
_SYMBOL = re.compile(r"\w[(!]|[{}\[\]=<>|;$\\]|\s--?\w")
_WORDS_IN = re.compile(r"[^\W\d_]{2,}")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_TEST = re.compile(
    r"\bdef test|\bclass \w*Test|@(?:\w+)?Test\b|@test\b|#\[(?:\w+::)?test|\b(?:it|test|describe)\s*\("
    r"|\(deftest\b|\bfunc Test\w*\(|\bTEST(?:_F|_P|_CASE)?\(|\[(?:Test|Fact|Theory|TestMethod)\b"
    r"|^[ \t]*(?:it|test|specify) [\"']|\bfunction test|\bfun `?\w*test|\bScenario:|unittest|>>> ",
    re.IGNORECASE | re.MULTILINE,
)
_ASSERTION = re.compile(
    r"assert|\bexpect\b|\bexpect\w*!?\(|EXPECT_|REQUIRE\(|CHECK\(|\bshould\b|\.should|\bt\.(?:Error|Fatal|Fail)"
    r"|\brequire\.|\braises\(|\bverify\(|\(is \(|should_panic|\bThen\b|>>> ",
    re.IGNORECASE,
)
_COMMENT = re.compile(r"\"\"\"|'''|/\*|(?:^|\s)//|^[ \t]*(?:#|--|;|%)|\s#\s|<!--", re.MULTILINE)
_STEP = re.compile(
    r"^[ \t]*(?:[-*•+]\s|\(?\d+[.):]|\|.*\||#+\s"
    r"|\W{0,4}(?:step|phase|day|week|stage|first|second|third|then|next|finally)\b)",
    re.IGNORECASE | re.MULTILINE,
)
_THEN = re.compile(r"\b(?:first|second|third|then|next|after that|afterwards|finally)\b", re.IGNORECASE)
_MANY = re.compile(r"\ball that apply\b|\bone or more\b|\bmultiple\b|\bmulti-?label\b", re.IGNORECASE)


def not_empty(output: str, prompt: str) -> str | None:
    """Anything but blanks."""
    return None if output.strip() else "empty"


def summary(output: str, prompt: str) -> str | None:
    """Prose; code stands in a summary's place when nothing else stands beside it."""
    if reason := _no_answer(output):
        return reason
    text = _unwrapped_prose(output)
    if _FENCE_LINE.search(text) and not any(map(_is_prose, _lines(_parted(text)[1]))):
        return "code in a summary's place"
    lines = _lines(text)
    code = sum(bool(_STRUCTURE.match(line)) for line in lines)
    return "code in a summary's place" if code * 2 > len(lines) else None


def label(output: str, prompt: str) -> str | None:
    """One line that is a label offered by the prompt; without an offer, one short line."""
    text = _bare(output)
    if "\n" in text:
        return "several lines"
    if _REFUSAL.match(text):
        return "a refusal"
    offered = set(map(_fold, offered_labels(prompt)))
    if not offered:
        return "over 60 characters" if len(text) > 60 else not_empty(text, prompt)
    answers = text.split(",") if _MANY.search(prompt) and _fold(text) not in offered else [text]
    return None if offered.issuperset(map(_fold, answers)) else "not one of the labels offered"


def extraction(output: str, prompt: str) -> str | None:
    """What was found, in any form; not a refusal, not an announcement alone."""
    return _no_answer(output)


def name(output: str, prompt: str) -> str | None:
    """One name as a programmer would write it, with no blank in it."""
    return None if _NAME.fullmatch(_bare(output)) else "not one identifier-like name"


def commit_message(output: str, prompt: str) -> str | None:
    """A subject of at most 100 characters, then nothing, or a blank line and a body."""
    text = output.strip()
    if _FENCE_LINE.search(text):
        return "a code fence in a commit message"
    if _REFUSAL.match(text):
        return "a refusal"
    if _COMMIT_PREAMBLE.match(text):
        return "a preamble before the subject"
    subject, *body = text.strip(_DRESS).splitlines() or [""]
    if body and body[0].strip():
        return "a subject of several lines"
    return "a subject over 100 characters" if len(subject) > 100 else not_empty(subject, prompt)


def version(output: str, prompt: str) -> str | None:
    """A translation or rewriting: the text itself, changed, with nothing said about it."""
    if _TASK_REFUSAL.match(output):
        return "a refusal"
    if _VERSION_PREAMBLE.match(output):
        return "a preamble before the text"
    answer, asked = _fold(_bare(output)), _fold(prompt)
    subjects = {_fold(part) for part in re.split(r":|\n", prompt, maxsplit=1)[1:]}
    subjects |= {_fold(match) for match in re.findall(r"[\"“]([^\"“”]+)[\"”]", prompt)}
    echo = answer == asked or (answer in subjects and len(answer.split()) > 3)
    return "an echo of the prompt" if echo else not_empty(answer, prompt)


def code(output: str, prompt: str) -> str | None:
    """Code in closed fences, or lines that look like code."""
    if reason := _broken(output):
        return reason
    if _FENCE_LINE.search(output):
        return None if _parted(output)[0].strip() else "no code"
    lines = _lines(output)
    coded = sum(map(_is_code, lines))
    return None if coded and coded * 3 >= len(lines) else "no code"


def refactoring(output: str, prompt: str) -> str | None:
    """Code that is not the prompt again."""
    if _fold(output) == _fold(prompt):
        return "an echo of the prompt"
    return code(output, prompt)


def tests(output: str, prompt: str) -> str | None:
    """Code with a test and an assertion, in any of the common languages."""
    if reason := code(output, prompt):
        return reason
    if not _TEST.search(output):
        return "no test"
    return None if _ASSERTION.search(output) else "no assertion"


def comment(output: str, prompt: str) -> str | None:
    """Comment syntax or a docstring, alone or with its code."""
    if reason := _broken(output):
        return reason
    return None if _COMMENT.search(output) else "no comment"


def explanation(output: str, prompt: str) -> str | None:
    """At least one sentence that is not code."""
    if reason := _broken(output):
        return reason
    outside = _lines(_parted(_unwrapped_prose(output))[1])
    return None if any(map(_is_prose, outside)) else "only code"


def reasoning(output: str, prompt: str) -> str | None:
    """An answer, however short; not a refusal, not an announcement alone."""
    return _no_answer(output)


def plan(output: str, prompt: str) -> str | None:
    """At least two steps, as a list or in words of order."""
    if reason := _broken(output):
        return reason
    steps = max(len(_STEP.findall(output)), len(_THEN.findall(output)))
    return None if steps >= 2 else "fewer than two steps"


def design(output: str, prompt: str) -> str | None:
    """More than a remark: a dozen words, prose or notation."""
    if reason := _broken(output):
        return reason
    words = len(_WORDS_IN.findall(output)) + len(_CJK.findall(output))
    return None if words >= 12 else "fewer than a dozen words"


#: every check by the name that a category gives
CHECKS: dict[str, Check] = {
    "not_empty": not_empty,
    "summary": summary,
    "label": label,
    "extraction": extraction,
    "name": name,
    "commit_message": commit_message,
    "version": version,
    "code": code,
    "refactoring": refactoring,
    "tests": tests,
    "comment": comment,
    "explanation": explanation,
    "reasoning": reasoning,
    "plan": plan,
    "design": design,
}


def _no_answer(output: str) -> str | None:
    """The reason why nothing was answered: blank, a refusal, an announcement with nothing after it."""
    text = output.strip()
    if not text:
        return "empty"
    if _REFUSAL.match(text):
        return "a refusal"
    preamble = _PREAMBLE.match(text)
    announced = preamble and len(preamble[0].split()) > 2 and not text[preamble.end() :].strip(_DRESS)
    return "only a preamble" if announced else None


def _broken(output: str) -> str | None:
    """The reason why the output is no answer, or was cut off within a fence."""
    if len(_FENCE_LINE.findall(output)) % 2:
        return "an unclosed code fence"
    return _no_answer(output)


def _unwrapped(output: str) -> str:
    """`output` out of the one fence around all of it, if there is one."""
    head, _, rest = output.strip().partition("\n")
    whole = re.fullmatch(r"```[\w+-]*\s*", head) and rest.endswith("```") and "```" not in rest[:-3]
    return rest[:-3] if whole else output


def _parted(text: str) -> tuple[str, str]:
    """What stands inside fences, and what outside."""
    parts: tuple[list[str], list[str]] = ([], [])
    outside = True
    for line in text.splitlines(keepends=True):
        if _FENCE_LINE.match(line):
            outside = not outside
        else:
            parts[outside].append(line)
    return "".join(parts[0]), "".join(parts[1])


def _unwrapped_prose(output: str) -> str:
    """`output` out of a fence that says it is text."""
    return _unwrapped(output) if _TEXT_FENCE.match(output) else output


def _bare(output: str) -> str:
    """A one-line answer without its fence, quotes, bold and full stop."""
    return _unwrapped(output).strip(_DRESS).rstrip(".").strip(_DRESS)


def _fold(text: str) -> str:
    """`text` for comparing: case, blanks, hyphens, quotes, a full stop and an article aside."""
    folded = re.sub(r"[\s_-]+", " ", text.strip(_DRESS).rstrip(".").strip(_DRESS)).casefold()
    return re.sub(r"^(?:an?|the) ", "", folded)


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _is_code(line: str) -> bool:
    if _STRUCTURE.match(line):
        return True
    return bool(_SYMBOL.search(line)) and not line.rstrip().endswith((".", "!", "?", ":"))


def _is_prose(line: str) -> bool:
    words = len(_WORDS_IN.findall(line))
    return (words >= 4 or len(_CJK.findall(line)) >= 6) and not _STRUCTURE.match(line)
