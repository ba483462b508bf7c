"""The settings as the commented property files describe them.

A property file has sections, each under a comment line, and one comment per key:
`key: default  # (values) meaning`, continued on lines that hold nothing but a comment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from recbole_multdpo.settings.effects import acts
from recbole_multdpo.settings.language_models import LANGUAGE_MODELS

_KEY = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?: +(?P<value>[^#]*?))? *(?:# ?(?P<comment>.*))?$")
_CONTINUED = re.compile(r"^ +# *(?P<comment>.*)$")
_HEADING = re.compile(r"^# ?(?P<text>.*)$")
# the parenthesis that opens a comment, up to the last one that a space follows: "(float in (0, 1))"
_VALUES = re.compile(r"^\((?P<values>.*?)\)(?= |$) *(?P<meaning>.*)$")


@dataclass
class Setting:
    """One key of a property file; the parts of a mapping are keys such as `eval_args.split`."""

    key: str
    default: str
    comment: str

    @property
    def values(self) -> str:
        """Allowed values, from the comment's parenthesis; empty if it has none."""
        match = _VALUES.match(self.comment)
        return match["values"] if match else ""

    @property
    def meaning(self) -> str:
        """The comment without the parenthesis."""
        match = _VALUES.match(self.comment)
        return match["meaning"] if match else self.comment


@dataclass
class Section:
    """The settings under one heading."""

    heading: str
    settings: list[Setting] = field(default_factory=list)


def read_sections(path: Path) -> tuple[str, list[Section]]:
    """Read a property file's introduction and its sections, in order.

    Raises:
        ValueError: a line is neither a key, a comment nor empty.
    """
    blocks = [block.splitlines() for block in path.read_text(encoding="utf-8").split("\n\n")]
    introduction, sections = "", []
    for block in blocks:
        heading = []
        while block and (match := _HEADING.match(block[0])):
            heading.append(match["text"])
            block = block[1:]
        if not block:
            introduction = " ".join(heading)
            continue
        sections.append(Section(" ".join(heading), _settings(block, path)))
    return introduction, sections


def _settings(lines: list[str], path: Path) -> list[Setting]:
    found: list[Setting] = []
    parent = ""
    for line in lines:
        if continued := _CONTINUED.match(line):
            found[-1].comment += f" {continued['comment']}"
        elif match := _KEY.match(line):
            if not match["indent"]:
                parent = match["key"]
            key = f"{parent}.{match['key']}" if match["indent"] else match["key"]
            found.append(Setting(key, match["value"] or "", match["comment"] or ""))
        elif line.strip():
            raise ValueError(f"{path}: {line!r} is neither a key nor a comment")
    return found


def acting_words(key: str, model: str) -> str:
    """The parts and conditions of a setting in words: `preference; with negatives=dynamic`."""
    acting = acts(key.partition(".")[0], model if model in LANGUAGE_MODELS else None)
    words = [condition.words for condition in acting.when]
    parts = acting.parts if isinstance(acting.parts, tuple) else (acting.parts,)
    return "; ".join(
        [
            ", ".join(parts),
            *([f"with {', '.join(words)}"] if words else []),
            *([] if acting.changes == "results" else [f"{acting.changes} only"]),
        ]
    )
