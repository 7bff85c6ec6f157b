"""Named checks on a model's text: is this a plausible answer of its kind at all?

A check is pure, `(output, prompt) -> None | reason`; the reason never quotes the output or the prompt.
Checks are lenient about how local models dress a good answer (quotes, bold, one fence around it, a full
stop) and catch only what is clearly no answer.  A new check is one function and one line of CHECKS.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tasks.labels import DRESS, offered_labels

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
    subject, *body = text.strip(DRESS).splitlines() or [""]
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


def same_label(one: str, other: str) -> bool:
    """Whether two answers name one label, however they dress it."""
    return _fold(_bare(one)) == _fold(_bare(other))


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
    announced = preamble and len(preamble[0].split()) > 2 and not text[preamble.end() :].strip(DRESS)
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
    return _unwrapped(output).strip(DRESS).rstrip(".").strip(DRESS)


def _fold(text: str) -> str:
    """`text` for comparing: case, blanks, hyphens, quotes, a full stop and an article aside."""
    folded = re.sub(r"[\s_-]+", " ", text.strip(DRESS).rstrip(".").strip(DRESS)).casefold()
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
