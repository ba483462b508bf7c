"""The rendered site: it builds without warnings, and its links lead somewhere outside too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generate.addresses import absolute_links, pages_url, project_urls
from docs.generate.site import NOTEBOOK, colab_url, for_colab
from tests.docs.markdown import ROOT

REPOSITORY = "https://github.com/Someone/recbole_multdpo"
NOTEBOOK_TEXT = (ROOT / "docs" / NOTEBOOK).read_text(encoding="utf-8")


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """The site of `root`, built as `make site` does (--quiet would hide warnings)."""
    pytest.importorskip("mkdocstrings", reason="the site needs the docs extra")
    pytest.importorskip("material", reason="the site needs the docs extra")
    variables = {"REPOSITORY_URL": REPOSITORY, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(root)}
    command = ["-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | variables,
        timeout=300,
    )


@pytest.mark.integration
def test_site_has_the_api_and_leads_to_the_repository(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    api = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    assert "preference_loss" in api and "Raises:" in api
    comparing = (tmp_path / "comparing" / "index.html").read_text(encoding="utf-8")
    assert f'href="{REPOSITORY}/blob/main/experiments/README.md"' in comparing
    tutorial = (tmp_path / "tutorial" / "index.html").read_text(encoding="utf-8")
    assert colab_url(REPOSITORY) in tutorial
    assert f'source = \\"{REPOSITORY}\\"' in (tmp_path / NOTEBOOK).read_text(encoding="utf-8")
    assert not list(tmp_path.rglob("*.py"))
    for page in tmp_path.rglob("index.html"):  # nothing is loaded from elsewhere
        text = page.read_text(encoding="utf-8")
        assert 'src="http' not in text and "fonts.googleapis" not in text, page


@pytest.mark.integration
def test_a_broken_link_and_a_page_without_a_place_are_found(tmp_path: Path) -> None:
    """Control: the build would have noticed."""
    root = tmp_path / "root"
    shutil.copytree(ROOT / "docs", root / "docs", ignore=shutil.ignore_patterns("*.html"))
    shutil.copy(ROOT / "mkdocs.yml", root)
    (root / "recbole_multdpo").symlink_to(ROOT / "recbole_multdpo")
    (root / "docs" / "lost.md").write_text("# Lost\n")
    with (root / "docs" / "api.md").open("a") as page:
        page.write("\n[nowhere](losses.md#no-such-heading)\n")
    done = build(root, tmp_path / "site")
    assert done.returncode != 0
    for found in ("no-such-heading", "lost.md"):
        assert found in done.stderr, done.stderr


def test_links_become_absolute_or_text() -> None:
    text = (
        "[![t](../../actions/t.svg)](../../actions) [a `b`](docs/a.md#c) ![p](docs/p.png) "
        "[w](https://x.org) [h](#here)\n```text\n[kept](docs/a.md)\n```\n"
    )
    assert absolute_links(text, REPOSITORY) == (
        f"[![t]({REPOSITORY}/actions/t.svg)]({REPOSITORY}/actions) "
        f"[a `b`]({REPOSITORY}/blob/main/docs/a.md#c) ![p]({REPOSITORY}/raw/main/docs/p.png) "
        "[w](https://x.org) [h](#here)\n```text\n[kept](docs/a.md)\n```\n"
    )
    assert absolute_links(text, "") == (
        " a `b`  [w](https://x.org) [h](#here)\n```text\n[kept](docs/a.md)\n```\n"
    )


def test_addresses_of_a_project() -> None:
    assert pages_url(REPOSITORY) == "https://someone.github.io/recbole_multdpo/"
    urls = project_urls(REPOSITORY)
    assert urls["Repository"] == REPOSITORY and urls["Paper"].endswith("2606.10078")
    assert list(project_urls("")) == ["Paper"]


def test_the_notebook_for_colab_differs_in_its_address_alone() -> None:
    ours, theirs = json.loads(NOTEBOOK_TEXT), json.loads(for_colab(NOTEBOOK_TEXT, REPOSITORY))
    changed = [
        (a["source"], b["source"])
        for a, b in zip(ours["cells"], theirs["cells"], strict=True)
        if a != b
    ]
    assert len(changed) == 1
    assert "".join(changed[0][1]) == "".join(changed[0][0]).replace(
        'source = ""', f'source = "{REPOSITORY}"'
    )
