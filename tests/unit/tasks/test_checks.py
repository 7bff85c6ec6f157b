"""Good answers of real local models pass their category's check, and clearly bad ones fail."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.categories import DEFAULT_CATEGORIES
from tasks.checks import CHECKS


@dataclass(frozen=True)
class Cases:
    """Outputs that a category's check must pass and must fail, for one prompt."""

    prompt: str
    good: tuple[str, ...]
    bad: tuple[str, ...]


REFUSAL = "I'm sorry, but I can't help with that."
AS_AN_AI = "As an AI language model, I cannot do that."
PYTHON = "```python\ndef add(a, b):\n    return a + b\n```"

#: every chat category; embed's answers are vectors (test_validation.py)
TABLE = {
    "summarize": Cases(
        "Summarize: Reverie is a Rust local-first memory layer.",
        (
            "Reverie is a memory layer in Rust that keeps data local.",
            "A Rust memory layer.",
            "Here is a summary:\n\n- Local first\n- Written in Rust",
            "```\nReverie is a memory layer that is local first.\n```",
            "**Summary:** The function `add(a, b)` returns a sum; it replaces `plus`.",
            "The crate adds a cache layer. Example:\n```rust\nlet x = 1;\n```",
            "Reverieはローカル優先のメモリ層です。",
        ),
        ("", REFUSAL, AS_AN_AI, PYTHON, "def add(a, b):\n    return a + b", "Here is a summary of the text:"),
    ),
    "classify": Cases(
        "Classify as one of: bug, feature request, question\nThe app crashes.",
        (
            "bug",
            "Bug",
            "BUG.",
            '"bug"',
            "`bug`",
            "**Bug**",
            "feature_request",
            "Feature-Request",
            "```\nbug\n```",
            "bug\n",
        ),
        (
            "crash",
            "bug\nfeature request",
            "The label is bug because it crashes",
            "bug, question",
            REFUSAL,
            "",
        ),
    ),
    "extract": Cases(
        "Extract the names: Ada met Grace.",
        (
            "Ada, Grace",
            "- Ada\n- Grace",
            '{"names": ["Ada", "Grace"]}',
            "```json\n[]\n```",
            "Here are the names: Ada, Grace",
            "Here are the names:\n\n1. Ada\n2. Grace",
            "none",
            "Here lies one whose name was writ in water.",
        ),
        (REFUSAL, AS_AN_AI, "Here are the names that I found:", "Sure! Here are the extracted names:", " "),
    ),
    "naming": Cases(
        "Name a function that fetches a user.",
        (
            "fetch_user",
            "fetchUser",
            "`fetchUser`",
            "fetch_user.",
            "**UserFetcher**",
            "user-fetcher",
            "fetchUser()",
        ),
        ("fetch_user\nget_user", "You could call it fetch_user", "1. fetch_user", REFUSAL, "", "a" * 100),
    ),
    "commit-msg": Cases(
        "Write a commit message: fixed a crash in login",
        (
            "Fix crash in login",
            "fix(auth): handle missing token.",
            '"Fix crash in login"',
            "**Fix crash in login**",
            "Fix crash\n\n- check the token\n- add a test",
        ),
        (
            "Fix crash\nAdd test",
            "```\nFix crash\n```",
            "Here is a commit message: Fix crash",
            "Sure! Fix crash",
            "Fix " + "very " * 30 + "old crash",
            REFUSAL,
            "",
        ),
    ),
    "translate": Cases(
        "Translate to German: The meeting starts at nine tomorrow.",
        (
            "Die Besprechung beginnt morgen um neun.",
            '"Die Besprechung beginnt morgen um neun."',
            "Es tut mir leid, ich kann nicht kommen.",
            "I'm sorry, but I can't come.",
            "Here is the list: milk, eggs",
            "OK",
        ),
        (
            "Translate to German: The meeting starts at nine tomorrow.",
            "The meeting starts at nine tomorrow.",
            "Here is the translation:\nDie Besprechung beginnt.",
            "Sure! Here's the German translation: Die Besprechung beginnt.",
            "I'm sorry, but I can't translate this text.",
            AS_AN_AI,
            "",
        ),
    ),
    "rewrite": Cases(
        "Rewrite politely: Send me the report right now.",
        (
            "Could you please send me the report when you have a moment?",
            "**Could you send me the report, please?**",
            "```\nCould you please send the report?\n```",
        ),
        (
            "Send me the report right now.",
            "Here's a more polite version: Could you send it?",
            "I cannot rewrite this.",
            "",
        ),
    ),
    "code": Cases(
        "Write a function that adds two numbers.",
        (
            PYTHON,
            f"Here is the function:\n\n{PYTHON}\n\nIt adds two numbers.",
            "fn add(a: i32, b: i32) -> i32 { a + b }",
            "ls -la | grep foo",
            "sum(xs)",
            'println!("{}", a + b);',
            "SELECT a FROM t",
            "const add = (a, b) => a + b\nexport default add",
            "x = [i for i in range(10)]",
        ),
        (
            "```python\ndef add(a, b):\n    return",
            "To add two numbers you should first read them and then add them.",
            "```\n```",
            REFUSAL,
            "",
        ),
    ),
    "refactor": Cases(
        "def f(x):\n    return x+1 if True else 0",
        (
            "```python\ndef f(x):\n    return x + 1\n```",
            "def increment(x: int) -> int:\n    return x + 1",
            "The branch is never taken.\n\n```python\ndef f(x):\n    return x + 1\n```",
        ),
        (
            "def f(x):\n    return x+1 if True else 0",
            "The function can be made simpler by leaving out the branch.",
            "```python\ndef f(x):",
            AS_AN_AI,
        ),
    ),
    "test-scaffold": Cases(
        "Write tests for add(a, b).",
        (
            "```python\ndef test_add():\n    assert add(1, 2) == 3\n```",
            "```rust\n#[test]\nfn adds() {\n    assert_eq!(add(1, 2), 3);\n}\n```",
            "```js\ndescribe('add', () => { it('adds', () => { expect(add(1, 2)).toBe(3); }); });\n```",
            '```go\nfunc TestAdd(t *testing.T) {\n\tif Add(1, 2) != 3 {\n\t\tt.Errorf("wrong")\n\t}\n}\n```',
            "```java\n@Test\nvoid adds() {\n    assertEquals(3, add(1, 2));\n}\n```",
            "```cpp\nTEST(Add, Adds) {\n  EXPECT_EQ(add(1, 2), 3);\n}\n```",
            "```csharp\n[Fact]\npublic void Adds() { Assert.Equal(3, Add(1, 2)); }\n```",
            "```ruby\nit 'adds' do\n  expect(add(1, 2)).to eq(3)\nend\n```",
            "import unittest\nclass TestAdd(unittest.TestCase):\n    def test_add(self):\n"
            "        self.assertEqual(add(1, 2), 3)",
        ),
        (
            PYTHON,
            "```python\ndef test_add():\n    pass\n```",
            "You should test that one and two make three.",
            "```python\ndef test_add():\n    assert",
            REFUSAL,
        ),
    ),
    "comment": Cases(
        "Comment: def add(a, b): return a + b",
        (
            "```python\ndef add(a, b):\n    # the sum of both\n    return a + b\n```",
            'def add(a, b):\n    """Return the sum."""\n    return a + b',
            "/** Adds two numbers. */",
            "/// Adds two numbers.",
            "-- adds two numbers",
            "<!-- the header -->",
            "x = 1  # one",
        ),
        ("It adds two numbers, see https://example.org/add", PYTHON, "```python\n# cut off", REFUSAL, ""),
    ),
    "explain": Cases(
        "Explain: x = [i * i for i in range(10)]",
        (
            "It builds a list of the squares from 0 to 81.",
            "It squares each number.",
            "- `range(10)` gives the numbers 0 to 9\n- `i * i` squares each of them",
            "```python\nx = 1\n```\nThis sets x to one.",
            "これは平方数のリストを作ります。",
        ),
        ("```python\nx = [i * i for i in range(10)]\n```", "x = [i * i for i in range(10)]", REFUSAL, ""),
    ),
    "reason": Cases(
        "A bat and a ball cost 1.10; the bat costs 1 more. What is the ball?",
        (
            "0.05",
            "Let the ball be x. Then 2x + 1 = 1.10.\n\nAnswer: 0.05",
            "Let's think step by step:\n1. x + (x + 1) = 1.1\n2. x = 0.05",
            "I cannot tell which is right, as both fit the facts.",
        ),
        (REFUSAL, AS_AN_AI, "Sure, let's think about this step by step:", "\n"),
    ),
    "plan": Cases(
        "Plan a move to PostgreSQL.",
        (
            "1. Dump the data\n2. Load it\n3. Switch over",
            "- Dump the data\n- Load it",
            "**Step 1: Dump**\nUse the tool.\n\n**Step 2: Load**\nLoad it.",
            "### Phase 1\nDump.\n### Phase 2\nLoad.",
            "First dump the data, then load it, and finally switch over.",
            "| Step | Action |\n|---|---|\n| 1 | Dump |",
        ),
        ("Just move it.", "1. Dump the data", "Sure! Here is a plan for you:", REFUSAL),
    ),
    "design": Cases(
        "Design a queue.",
        (
            "The queue has one table of jobs. Workers claim rows by lease, and a sweep returns lost ones.",
            "## Parts\n- Table of jobs with state\n- Workers to claim them\n- A sweep for lost ones, every 5 s",
            "ジョブの表と、取得するワーカーと、失われた分を戻す掃除役から成る。",
        ),
        (
            "Use a database.",
            "OK",
            REFUSAL,
            "```sql\nCREATE TABLE jobs (id INTEGER PRIMARY KEY, state TEXT, lease",
        ),
    ),
    "chat": Cases("Hello", ("Hi!", REFUSAL), ("", " \n\t")),
}


def _outputs(good: bool) -> list[tuple[str, str]]:
    return [(category, output) for category, cases in TABLE.items() for output in (cases.good if good else cases.bad)]


def _reason(category: str, output: str) -> str | None:
    return CHECKS[DEFAULT_CATEGORIES[category].check](output, TABLE[category].prompt)


def test_every_category_has_its_cases() -> None:
    """No category with a check of its own can be added without outputs that pass and at least two that fail."""
    checked = {n for n, c in DEFAULT_CATEGORIES.items() if c.kind == "chat" and (c.check != "not_empty" or n in TABLE)}
    assert set(TABLE) == checked
    for cases in TABLE.values():
        assert cases.good
        assert len(cases.bad) >= 2


def test_every_check_is_some_categorys() -> None:
    """Every named check is used by a built-in category, so that the table covers them all."""
    assert set(CHECKS) == {category.check for category in DEFAULT_CATEGORIES.values()}


@pytest.mark.parametrize(("category", "output"), _outputs(good=True))
def test_good_answers_pass(category: str, output: str) -> None:
    """What a person would take as an answer passes, in whatever dress."""
    assert _reason(category, output) is None


@pytest.mark.parametrize(("category", "output"), _outputs(good=False))
def test_bad_answers_fail(category: str, output: str) -> None:
    """What is clearly no answer fails, with a reason that does not quote it."""
    reason = _reason(category, output)
    assert reason
    assert len(output) < 8 or output not in reason


@pytest.mark.parametrize(
    ("prompt", "output", "passes"),
    [
        ("this PR adds a new schema field", "pr-schema", True),
        ("this PR adds a new schema field", "x" * 61, False),
        ("this PR adds a new schema field", "schema\nchange", False),
        ("Labels: ui, api, docs. Choose all that apply.", "ui, docs", True),
        ("Labels: ui, api, docs. Choose all that apply.", "ui, tests", False),
        ("Labels: ui, api, docs.", "ui, docs", False),
        ("Is this a bug or a feature?", "A bug.", True),
    ],
)
def test_labels_follow_the_prompt(prompt: str, output: str, passes: bool) -> None:
    """Without an offer any short line is a label; several labels pass only where several are asked for."""
    assert (CHECKS["label"](output, prompt) is None) == passes


def test_an_untranslatable_word_may_stay() -> None:
    """A short text that is the same in both languages is no echo."""
    assert CHECKS["version"]("OK", "Translate to German: OK") is None


@pytest.mark.parametrize("check", CHECKS.values(), ids=list(CHECKS))
@given(output=st.text(), prompt=st.text())
def test_checks_read_anything(check: object, output: str, prompt: str) -> None:
    """No output or prompt makes a check fail in itself, and blanks pass none."""
    assert callable(check)
    assert check(output, prompt) is None or check(output, prompt)
    assert check("", prompt)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS.values(), ids=list(CHECKS))
@pytest.mark.parametrize(
    "piece",
    [
        "```\n",
        "a(",
        "here ",
        "sure ",
        "I cannot ",
        "\n \n",
        "\t",
        "a, ",
        "if ",
        "a=",
        "!'",
        "```x\n",
        "\n",
        '"',
        "“",
    ],
)
def test_checks_stay_quick(check: object, piece: str) -> None:
    """A fifth of a megabyte of the same thing is judged within a moment of its own time."""
    assert callable(check)
    began = time.process_time()
    text = piece * (200_000 // len(piece))
    check(text, "one of: a, b")
    check(text, text)
    assert time.process_time() - began < 2
