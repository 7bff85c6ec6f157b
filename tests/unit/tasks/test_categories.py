"""Every category has a class, a check, and a system text that helps a small model pass it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.categories import DEFAULT_CATEGORIES, Category
from tasks.checks import CHECKS
from tasks.registry import CLOUD
from tasks.validation import compile_schema

ROOT = Path(__file__).parents[3]
CLASSES = {
    "small": {"summarize", "classify", "extract", "naming", "commit-msg", "translate", "rewrite", "chat"},
    "coder": {"code", "refactor", "test-scaffold", "comment", "explain"},
    "reason": {"reason", "plan", "design"},
    "embed": {"embed"},
    "cloud": {"merge", "migrate", "schema-change", "deploy", "release"},
}
JOBS = [json.loads(line) for line in (ROOT / "ops/examples/jobs.jsonl").read_text().splitlines()]


def test_categories_go_to_the_helpers_classes() -> None:
    """Each category of the helper scripts, and chat, goes to the class of the model it has there."""
    found: dict[str, set[str]] = {}
    for category in DEFAULT_CATEGORIES.values():
        found.setdefault(category.model_class, set()).add(category.name)
    assert found == CLASSES


@pytest.mark.parametrize("category", DEFAULT_CATEGORIES.values(), ids=lambda category: category.name)
def test_system_text_names_its_task(category: Category) -> None:
    """A built-in chat category tells the model its task; chat and embed say nothing."""
    silent = category.name in {"chat", "embed"}
    assert category.system.startswith(f"Task: {category.name}. ") != silent
    assert bool(category.system) != silent
    assert category.check in CHECKS


def test_a_category_of_the_users_needs_little() -> None:
    """A name, a class and json make a category with a check that any answer passes."""
    category = Category.model_validate({"name": "triage", "class": "small", "json": True})
    assert (category.model_class, category.json, category.check) == ("small", True, "not_empty")
    assert category == Category(name="triage", model_class="small", json=True)
    assert category.model_dump(by_alias=True)["class"] == "small"


@pytest.mark.parametrize(
    "wrong",
    [
        {"check": "no_such_check"},
        {"attempts": 0},
        {"attempts": 11},
        {"temperature": 3},
        {"max_tokens": 0},
        {"class": ""},
        {"kind": "image"},
        {"sytem": "x"},
        {"name": "Not A Name"},
    ],
)
def test_wrong_categories_are_refused(wrong: dict[str, object]) -> None:
    """Unknown keys and values out of bounds are errors, and the error does not show the input."""
    with pytest.raises(ValidationError) as caught:
        Category.model_validate({"name": "triage", "class": "small", "system": "private words"} | wrong)
    assert "private words" not in str(caught.value)


def test_categories_do_not_change() -> None:
    """A category cannot be changed once made."""
    field = "check"
    with pytest.raises(ValidationError):
        setattr(DEFAULT_CATEGORIES["chat"], field, "code")


def test_the_example_jobs_cover_every_category() -> None:
    """The example file has a job of every category that a local model may do, each with one kind of input."""
    assert {job["category"] for job in JOBS} == {c.name for c in DEFAULT_CATEGORIES.values() if c.model_class != CLOUD}
    for job in JOBS:
        assert len({"prompt", "messages", "input"} & set(job)) == 1
        assert ("input" in job) == (DEFAULT_CATEGORIES[job["category"]].kind == "embed")
        assert len(json.dumps(job.get("prompt", ""))) < 600
    ids = [job["id"] for job in JOBS if "id" in job]
    assert len(ids) == len(set(ids))


def test_the_example_schemas_compile() -> None:
    """Every schema of the example file is a valid one."""
    schemas = [job["schema"] for job in JOBS if "schema" in job]
    assert schemas
    for schema in schemas:
        compile_schema(schema)
