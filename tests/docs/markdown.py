"""Parts of Markdown files for tests: code blocks, commands, links and headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "experiments").rglob("*.md"),
    ]
)
_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (?P<text>.+?)\s*$", re.MULTILINE)


def name_of(path: Path) -> str:
    """The document's path in the repository, for the names of tests."""
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """The document's code blocks of a language."""
    found = _BLOCK.finditer(path.read_text(encoding="utf-8"))
    return [match["code"] for match in found if match["language"] == language]


def prose(path: Path) -> str:
    """The document without its code blocks."""
    return _BLOCK.sub("", path.read_text(encoding="utf-8"))


def commands(path: Path) -> Iterator[list[str]]:
    """The words of every command of the document's shell blocks."""
    for code in blocks(path, "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if ">" in words:  # where the output goes
                words = words[: words.index(">")]
            while "&&" in words:
                place = words.index("&&")
                yield words[:place]
                words = words[place + 1 :]
            if words:
                yield words


def links(path: Path) -> list[str]:
    """Targets of the document's links and pictures, except those into the web."""
    targets = [match["target"] for match in _LINK.finditer(prose(path))]
    return [target for target in targets if "://" not in target]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives the document's headings."""
    found: set[str] = set()
    for match in _HEADING.finditer(prose(path)):
        text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", match["text"]).lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = 0
        while (numbered := f"{anchor}-{number}" if number else anchor) in found:
            number += 1
        found.add(numbered)
    return found
