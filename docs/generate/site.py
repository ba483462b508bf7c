"""Hooks of the rendered site (mkdocs.yml): links out of docs/, and the notebook for Colab."""

from __future__ import annotations

import json
import posixpath
from pathlib import Path
from typing import Any

from docs.generate.addresses import BRANCH, map_links, repository_url

NOTEBOOK = "quickstart.ipynb"
PAGES_BRANCH = "gh-pages"  # where the workflow puts the site; Colab opens notebooks of a branch


def on_config(config: Any) -> Any:
    """Add the repository's address."""
    if repository_url():
        config.repo_url = repository_url()
    return config


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Make links to files outside of docs/ absolute, or plain text without an address."""

    def change(target: str, image: bool) -> str | None:
        path = posixpath.normpath(posixpath.join("docs", page.file.src_uri, "..", target))
        if path.startswith("docs/"):
            return target
        return f"{repository_url()}/blob/{BRANCH}/{path}" if repository_url() else None

    markdown = map_links(markdown, change)
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]
    if repository_url():
        opened = f"[Open it in Colab]({colab_url(repository_url())})."
        markdown = markdown.replace("<!-- colab -->", opened)
    return markdown


def on_post_build(config: Any) -> None:
    """Write the repository's address into the site's copy of the notebook."""
    if repository_url():
        path = Path(config.site_dir) / NOTEBOOK
        path.write_text(for_colab(path.read_text(encoding="utf-8"), repository_url()))


def colab_url(repository: str) -> str:
    """The address that opens the site's notebook in Colab."""
    name = repository.removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{name}/blob/{PAGES_BRANCH}/{NOTEBOOK}"


def for_colab(notebook: str, repository: str) -> str:
    """The notebook with the repository's address in its first code cell: `source = ""`."""
    content = json.loads(notebook)
    cell = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
    cell["source"] = [
        line.replace('source = ""', f'source = "{repository}"') for line in cell["source"]
    ]
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
