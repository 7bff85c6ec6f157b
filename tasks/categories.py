"""What kinds of work there are; a category picks the model class and the check on the output.

The built-in ones are those of the helper scripts that this project replaces
(shared/contracts/offload-helpers.md), those that they never leave to a local model among them, and `chat`,
which is what an OpenAI batch line is when nothing else is said.  A new category is one line in
DEFAULT_CATEGORIES, or a few in offload.yaml.
"""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tasks.checks import CHECKS
from tasks.privacy import Tier

# pydantic's deprecated BaseModel.json is given up for a field of that name
warnings.filterwarnings("ignore", 'Field name "json" in "Category" shadows', UserWarning)


class Category(BaseModel):
    """One kind of work.  A category of offload.yaml may give just `class` and `json`.

    model_class is `class` on the wire.  think: whether the model may think before it answers; None leaves
    that to the server.  temperature, max_tokens: None leaves them to the server too; max_tokens counts
    tokens of the answer.  system goes before the prompt.  check names one of tasks/checks.py; outputs of
    kind embed and of JSON jobs have checks of their own (tasks/validation.py).  attempts: calls that may
    fail before the job does.  on_failure: what follows an output that fails its checks after its attempts,
    and a class that nobody serves any more.  privacy: the tier of its jobs; None leaves it to the configuration.
    audit: the share of finished local jobs that a second opinion is asked on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, populate_by_name=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    model_class: str = Field(validation_alias="class", serialization_alias="class", min_length=1, max_length=64)
    json: bool = False  # type: ignore[assignment]  # the word of job lines and offload.yaml; see above
    think: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    system: str = ""
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    check: str = "not_empty"
    attempts: int = Field(default=3, ge=1, le=10)
    kind: Literal["chat", "embed"] = "chat"
    on_failure: Literal["fail", "escalate"] = "fail"
    privacy: Tier | None = None
    audit: float = Field(default=0.01, ge=0, le=1)

    @field_validator("check")
    @classmethod
    def _known(cls, check: str) -> str:
        if check not in CHECKS:
            raise ValueError(f"no such check; there are {', '.join(sorted(CHECKS))}")
        return check

    @cached_property
    def treatment(self) -> str:
        """What changes its answers, as JSON."""
        return self.model_dump_json(exclude={"audit", "privacy", "on_failure"})


def _chat(name: str, model_class: str, check: str, system: str, temperature: float | None = None) -> Category:
    return Category(
        name=name,
        model_class=model_class,
        check=check,
        system=f"Task: {name}. {system}",
        temperature=temperature,
    )


_SUMMARIZE = "Summarize the text in a few plain sentences. Answer with the summary only, without code."
_CLASSIFY = (
    "Answer with exactly one of the labels offered, and nothing else. "
    "If none are offered, answer with one short lowercase label."
)
_EXTRACT = "Answer with exactly what was asked for, as it stands in the text, and nothing else."
_NAMING = "Answer with one name in the naming style of the language asked about, and nothing else."
_COMMIT = "Answer with one commit subject line of at most 72 characters, imperative mood, and nothing else."
_TRANSLATE = "Answer with the translation only, with no introduction and no notes."
_REWRITE = "Answer with the rewritten text only, with no introduction and no notes."
_CODE = "Answer with complete code in one fenced block and no more explanation than it needs."
_REFACTOR = "Keep the behaviour. Answer with the whole changed code in one fenced block."
_TEST_SCAFFOLD = "Answer with tests in one fenced block; give every test at least one assertion."
_COMMENT = "Answer with the code and its comment or docstring in one fenced block, leaving the code as it is."
_EXPLAIN = "Explain in plain sentences what it does and why. Quote code only where it helps."
_REASON = "Reason briefly, then state the answer in the last line."
_PLAN = "Answer with a numbered list of at least two concrete steps, in the order they are done."
_GRAVE = "Say what to do, in which order, what may go wrong, and how to take it back."
_DESIGN = "Describe the parts, how they work together, and the trade-offs, in a few paragraphs or lists."

_BUILT_IN = (
    _chat("summarize", "small", "summary", _SUMMARIZE),
    _chat("classify", "small", "label", _CLASSIFY, temperature=0),
    _chat("extract", "small", "extraction", _EXTRACT, temperature=0),
    _chat("naming", "small", "name", _NAMING),
    _chat("commit-msg", "small", "commit_message", _COMMIT),
    _chat("translate", "small", "version", _TRANSLATE),
    _chat("rewrite", "small", "version", _REWRITE),
    _chat("code", "coder", "code", _CODE),
    _chat("refactor", "coder", "refactoring", _REFACTOR),
    _chat("test-scaffold", "coder", "tests", _TEST_SCAFFOLD),
    _chat("comment", "coder", "comment", _COMMENT),
    _chat("explain", "coder", "explanation", _EXPLAIN),
    _chat("reason", "reason", "reasoning", _REASON),
    _chat("plan", "reason", "plan", _PLAN),
    _chat("design", "reason", "design", _DESIGN),
    _chat("merge", "cloud", "not_empty", _GRAVE),
    _chat("migrate", "cloud", "not_empty", _GRAVE),
    _chat("schema-change", "cloud", "not_empty", _GRAVE),
    _chat("deploy", "cloud", "not_empty", _GRAVE),
    _chat("release", "cloud", "not_empty", _GRAVE),
    Category(name="embed", model_class="embed", kind="embed", audit=0),
    Category(name="chat", model_class="small"),
)

#: the pool's own, which no producer names: a second opinion on a finished job
AUDIT = Category(name="audit", model_class="cloud", json=True, system="Task: audit.", max_tokens=2_000, audit=0)

#: the built-in categories by name
DEFAULT_CATEGORIES: dict[str, Category] = {category.name: category for category in _BUILT_IN}
