"""Takes a model's thoughts out of its answer; shared/contracts/reasoning-leaks.md lists the families.

    <think> … </think>                            DeepSeek, Qwen3, GLM
    ◁think▷ … ◁/think▷                            Kimi
    [THINK] … [/THINK]                            Mistral
    <|channel|>analysis<|message|> … <|end|>      gpt-oss; the final channel's header ends a thought too
    <|channel>thought … <channel|>                Gemma 4
    Here's my thought process: … Here's my response:      Granite, only where the answer starts

A closer without an opener drops all before it; an opener without a closer is a truncated answer and
fails.  Markers in closed code fences and inline code of the answer are text; inside a thought, code
hides nothing, as thoughts leave fences open.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.errors import BadOutput

#: rounds until nothing is left to take out; more than one only where a removal made a new marker
_ROUNDS = 8

#: a group's name is family_open, family_close, or what else it is
_TOKEN = re.compile(
    r"(?P<think_open><think>)|(?P<think_close></think>)"
    r"|(?P<kimi_open>◁think▷)|(?P<kimi_close>◁/think▷)"
    r"|(?P<mistral_open>\[THINK\])|(?P<mistral_close>\[/THINK\])"
    r"|(?P<harmony_open>(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)[^<\n]{0,80}<\|message\|>)"
    r"|(?P<harmony_close>(?:<\|end\|>\s*)?(?:<\|start\|>assistant)?<\|channel\|>final[^<\n]{0,80}<\|message\|>"
    r"|<\|end\|>)"
    r"|(?P<gemma_open><\|channel>(?:thought)?)|(?P<gemma_close><channel\|>)"
    r"|(?P<stray><\|return\|>|<\|start\|>assistant)"
    r"|(?P<code>`+|^[ \t]*~{3,})",
    re.MULTILINE,
)
_THOUGHT_HEADING = re.compile(r"[\s*#]*Here(?:['\u2019]s| is) my thought process:\**")
_RESPONSE_HEADING = re.compile(r"[*#]*[ \t]*Here(?:['\u2019]s| is) my response:\**")
#: whether there is anything to do at all
_MARKER = re.compile(
    r"think>|think▷|THINK\]|<\|channel|<channel\||<\|end\||<\|return\||<\|start\|"
    r"|\A[\s*#]*Here(?:['\u2019]s| is) my (?:thought process|response):"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer without its thoughts; `leaked` says that `text` was not as the server sent it."""

    text: str
    reasoning: str = ""
    leaked: bool = False


def normalise(text: str, reasoning: str = "") -> Answer:
    """`text` parted into answer and thoughts; the thoughts come after `reasoning`, the server's own field.

    Text without markers comes back as it is.  Raises BadOutput `truncated_thinking` where a thought does
    not end.
    """
    if not _MARKER.search(text):
        return Answer(text, reasoning)
    thoughts = [reasoning]
    answer = text
    for _ in range(_ROUNDS):
        kept, found = _part(*_granite(answer))
        if kept == answer:
            return Answer(answer, "\n\n".join(filter(None, thoughts)), leaked=answer != text)
        answer = kept.strip()
        thoughts += [thought.strip() for thought in found]
    raise BadOutput("truncated_thinking", "thought markers are nested beyond reading")


def _granite(text: str) -> tuple[str, list[str]]:
    """`text` from Granite's response heading on, with the thought before it."""
    thought = _THOUGHT_HEADING.match(text)
    if not thought:
        bare = text.lstrip()
        response = _RESPONSE_HEADING.match(bare)
        return (bare[response.end() :] if response else text), []
    response = _RESPONSE_HEADING.search(text, thought.end())
    if not response:
        raise _truncated()
    return text[response.end() :], [text[thought.end() : response.start()]]


def _part(text: str, thoughts: list[str]) -> tuple[str, list[str]]:
    """One round: `text` without the thoughts that stand in it now, and those added to `thoughts`."""
    tokens = list(_TOKEN.finditer(text))
    closers = _closers(tokens)
    unclosed: set[str] = set()
    ended = _ended(text, tokens)
    kept: list[str] = []
    at = index = 0
    while index < len(tokens):
        token, family = tokens[index], str(tokens[index].lastgroup)
        if family == "code":
            index = _after_code(text, tokens, index, unclosed)
            continue
        kept.append(text[at : token.start()])
        at = token.end()
        if family.endswith("_open"):
            if index not in closers:
                raise _truncated()
            index = closers[index]
            thoughts.append(text[at : tokens[index].start()])
            at = tokens[index].end()
        elif family != "stray" and index < ended:
            thoughts.append("".join(kept))
            kept.clear()
        index += 1
    return "".join(kept) + text[at:], thoughts


def _ended(text: str, tokens: Sequence[re.Match[str]]) -> int:
    """Index of the first token of gpt-oss's end marks after which no answer comes: they drop nothing."""
    first, tail = len(tokens), len(text)
    while first and tokens[first - 1][0] in {"<|end|>", "<|return|>"}:
        if text[tokens[first - 1].end() : tail].strip():
            break
        first -= 1
        tail = tokens[first].start()
    return first


def _closers(tokens: Sequence[re.Match[str]]) -> dict[int, int]:
    """Index of each opener → index of its closer: its own when nested, else the next of its family."""
    following: dict[str, int] = {}
    closers: dict[int, int] = {}
    for index in range(len(tokens) - 1, -1, -1):
        family, _, end = str(tokens[index].lastgroup).partition("_")
        if end == "close":
            following[family] = index
        elif end == "open" and family in following:
            closers[index] = following[family]
    open_now: dict[str, list[int]] = {}
    for index, token in enumerate(tokens):
        family, _, end = str(token.lastgroup).partition("_")
        if end == "open":
            open_now.setdefault(family, []).append(index)
        elif end == "close" and open_now.get(family):
            closers[open_now[family].pop()] = index
    return closers


def _after_code(text: str, tokens: Sequence[re.Match[str]], index: int, unclosed: set[str]) -> int:
    """Index of the first token after the code that `tokens[index]` opens; the very next if it never closes.

    unclosed: fences known to have no end in the rest of the text; kept so that a round stays linear.
    """
    mark, start = tokens[index][0].strip(), tokens[index].end()
    line_start = text.rfind("\n", 0, tokens[index].start()) + 1
    line_end = _line_end(text, start)
    indented = not text[line_start : start - len(mark)].strip()
    fence = len(mark) >= 3 and indented and "`" not in text[start:line_end]
    if fence and mark in unclosed:
        return index + 1
    for later in range(index + 1, len(tokens)):
        token = tokens[later]
        if not fence and token.start() > line_end:
            break
        if token.lastgroup == "code" and _closes(text, token, mark, fence):
            return later + 1
    if fence:
        unclosed.add(mark)
    return index + 1


def _closes(text: str, token: re.Match[str], mark: str, fence: bool) -> bool:
    """Whether `token` ends the code that `mark` began (CommonMark: a closing fence is alone in its line)."""
    closing = token[0].strip()
    if not fence:
        return closing == mark
    before = text[text.rfind("\n", 0, token.start()) + 1 : token.start()]
    after = text[token.end() : _line_end(text, token.end())]
    return closing.startswith(mark) and not before.strip() and not after.strip()


def _line_end(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def _truncated() -> BadOutput:
    return BadOutput("truncated_thinking", "the answer ends inside a thought")
