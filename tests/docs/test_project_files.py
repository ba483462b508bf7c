"""Files around the package: citation, issue templates, workflows, hooks, Makefile."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import recbole_multdpo
from tests.docs.markdown import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_citation_agrees_with_the_package() -> None:
    citation = read_yaml(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == recbole_multdpo.__version__
    assert citation["title"] == "recbole_multdpo" and citation["authors"] and citation["message"]
    assert citation["license"] == "MIT"
    (paper,) = citation["references"]
    names = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    for name in ("README.md", "docs/citing.md"):
        text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
        assert names in text and paper["url"] in text, name
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


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_is_there(path: Path) -> None:
    """Jobs have steps; extras, Makefile targets and scripts that they name exist."""
    workflow = read_yaml(path)
    assert workflow["name"] == path.stem and (workflow[True] or workflow["on"])  # YAML 1.1's `on`
    commands = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert any(commands)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands:
        for extras in re.findall(r"\.\[([\w,]+)\]", command):
            assert all(f"\n{extra} = [" in project for extra in extras.split(",")), command
        for target in re.findall(r"\bmake (\w+)", command):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), command
        for script in re.findall(r"(?:bash|python) ([\w./]+(?:\.py|/run))", command):
            assert (ROOT / script).is_file(), command


def test_the_matrix_is_what_the_package_declares() -> None:
    jobs = read_yaml(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = re.findall(r"Programming Language :: Python :: (3\.\d+)", project)
    assert jobs["tests"]["strategy"]["matrix"]["python"] == declared


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
