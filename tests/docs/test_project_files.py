"""Files around the package: citation, issue templates, hooks, Makefile, API documentation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import recbole_multdpo
from tests.docs.markdown import ROOT

TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_citation_agrees_with_the_package() -> None:
    citation = read_yaml(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == recbole_multdpo.__version__
    assert citation["title"] == "recbole_multdpo" and citation["authors"] and citation["message"]
    assert citation["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert f"## {recbole_multdpo.__version__}" in (ROOT / "CHANGELOG.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_issue_templates_are_forms_that_github_takes(path: Path) -> None:
    form = read_yaml(path)
    if path.stem == "config":
        assert form.keys() <= {"blank_issues_enabled", "contact_links"}
        return
    assert form.keys() == {"name", "description", "labels", "body"}
    inputs = [field for field in form["body"] if field["type"] != "markdown"]
    assert inputs and len({field["id"] for field in inputs}) == len(inputs)
    for field in form["body"]:
        assert field["type"] in {"markdown", "textarea", "input"}
        assert field["attributes"].get("label") or field["attributes"].get("value")


def test_hooks_run_tools_of_the_test_extra() -> None:
    hooks = read_yaml(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extra = re.search(r"^test = \[$(.*?)^\]$", project, re.MULTILINE | re.DOTALL)
    assert extra
    tools = set(re.findall(r'^  "([\w-]+)', extra[1], re.MULTILINE))
    assert {hook["entry"].split()[0] for hook in hooks} <= tools


def test_makefile_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", text, re.MULTILINE))
    described = set(re.findall(r"^([a-z]+):.*##", text, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    assert phony and targets == described == set(phony[1].split())


@pytest.mark.integration
def test_api_documentation_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="API documentation needs pdoc, of the test extra")
    command = ["-m", "pdoc", "--docformat", "google", "--output-directory", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command, "recbole_multdpo"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower() and "error" not in done.stderr.lower(), done.stderr
    page = (tmp_path / "recbole_multdpo" / "losses.html").read_text(encoding="utf-8")
    assert "preference_loss" in page and "Raises" in page
