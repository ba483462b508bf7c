"""Addresses of the repository in texts that are read elsewhere: on PyPI, on the site, in Colab.

No file of the repository holds its address, so that a fork or a move needs no edit. It comes from
the variable `REPOSITORY_URL`, which the workflows set from `GITHUB_REPOSITORY`. Without it a link
to a file of the repository becomes plain text.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

VARIABLE = "REPOSITORY_URL"
BRANCH = "main"
PAPER = "https://arxiv.org/abs/2606.10078"
_LINK = re.compile(
    r"(?P<image>!?)\[(?P<text>(?:!\[[^\]]*\]\([^)\s]*\)|[^\[\]])*)\]\((?P<to>[^)\s]+)\)"
)
_CODE = re.compile(r"(^```.*?^```[^\n]*$)", re.MULTILINE | re.DOTALL)


def repository_url() -> str:
    """The repository's address without a slash at its end, or an empty text."""
    return os.environ.get(VARIABLE, "").rstrip("/")


def is_relative(target: str) -> bool:
    """True for a link to a file, with or without a heading of it."""
    return not target.startswith(("#", "mailto:")) and "://" not in target


def project_urls(repository: str) -> dict[str, str]:
    """The package's addresses as PyPI shows them, the paper's among them."""
    paper = {"Paper": PAPER}
    if not repository:
        return paper
    return {
        "Repository": repository,
        "Documentation": pages_url(repository),
        "Changelog": f"{repository}/blob/{BRANCH}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
        **paper,
    }


def pages_url(repository: str) -> str:
    """The address of the rendered site on GitHub's pages."""
    owner, name = repository.removeprefix("https://github.com/").split("/")
    return f"https://{owner.lower()}.github.io/{name}/"


def map_links(text: str, change: Callable[[str, bool], str | None]) -> str:
    """Markdown with its relative links changed; code blocks are left alone.

    Args:
        text: the Markdown.
        change: called with a link's target and True for a picture; returns the new target, or None
            where the link's text shall stay alone (of a picture nothing stays).
    """

    def changed(match: re.Match[str]) -> str:
        image, inner, target = bool(match["image"]), match["text"], match["to"]
        if not image:
            inner = _LINK.sub(changed, inner)  # a picture that is a link: a badge
        new = change(target, image) if is_relative(target) else target
        if new is None:
            return "" if image else inner
        return f"{match['image']}[{inner}]({new})" if inner or image else ""

    parts = _CODE.split(text)
    return "".join(part if _CODE.fullmatch(part) else _LINK.sub(changed, part) for part in parts)


def absolute_links(text: str, repository: str) -> str:
    """The README for readers outside of the repository: every link absolute, or only its text.

    Args:
        text: Markdown whose relative links start at the root of the repository.
        repository: address of the repository on GitHub, or an empty text.
    """

    def change(target: str, image: bool) -> str | None:
        if not repository:
            return None
        if target.startswith("../../"):  # GitHub's own pages: ../../actions
            return f"{repository}/{target.removeprefix('../../')}"
        return f"{repository}/{'raw' if image else 'blob'}/{BRANCH}/{target}"

    return map_links(text, change)
