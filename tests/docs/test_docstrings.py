"""Docstrings begin with what a thing is or does, not with a question word."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUESTION_WORDS = {"what", "whether", "where", "how", "which", "when"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def question_docstrings(source: str) -> list[str]:
    """First lines of the docstrings that begin with a question word."""
    docstrings = [
        ast.get_docstring(node) or ""
        for node in ast.walk(ast.parse(source))
        if isinstance(node, DOCUMENTED)
    ]
    first_words = [re.match(r"\W*(\w*)", text) for text in docstrings]
    return [
        text.splitlines()[0]
        for text, word in zip(docstrings, first_words, strict=True)
        if word is not None and word[1].lower() in QUESTION_WORDS
    ]


@pytest.mark.parametrize("folder", ["recbole_multdpo", "tests", "benchmarks", "docs"])
def test_no_docstring_begins_with_a_question_word(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    found = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if (lines := question_docstrings(path.read_text(encoding="utf-8")))
    }
    assert files and found == {}


@pytest.mark.parametrize(
    "source",
    [
        '"""What a module holds."""',
        'class A:\n    """Whether it is one."""',
        'def f():\n    """Where it is."""',
        'async def f():\n    """How it waits."""',
        'class A:\n    def f(self):\n        """  Which of them."""',
        'def f():\n    def g():\n        """When: at once."""',
    ],
)
def test_a_question_word_is_found(source: str) -> None:
    """Control: every kind of definition is searched."""
    assert len(question_docstrings(source)) == 1


def test_other_docstrings_pass() -> None:
    source = '"""Whatever it is."""\ndef f():\n    """True if so.\n\n    What it is."""'
    assert question_docstrings(source) == []
