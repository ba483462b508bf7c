"""The list of former silent faults names a test for each, and the tests exist."""

from __future__ import annotations

import ast
import re

from tests.docs.markdown import ROOT

TEXT = (ROOT / "docs" / "silent_faults.md").read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("| ") and "held by" not in line]


def test_every_fault_has_a_test() -> None:
    assert len(ROWS) >= 20
    for row in ROWS:
        assert re.search(r"`tests/[\w/]+\.py::test_\w+`", row), row


def test_every_test_exists() -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT):
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in tests, f"{path} has no {name}"
