"""Templates of item texts: `{title} ({brand})`, without traces of missing values.

A template consists of columns of the `.item` file in braces and of text. A missing value goes with
the text before it, the first one with the text after it; so do round and square brackets in which
no value is left. `{title} by {author} ({city}, {year})` without author and city is `It (1986)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from string import Formatter

_CLOSING = {"(": ")", "[": "]"}


@dataclass
class _Group:
    """The whole template, or a part of it in brackets.

    Attributes:
        opening: the bracket before it; empty for the whole template.
        parts: numbers of columns, and groups, each with the text between it and the one before.
        head: text before the first part.
        tail: text after the last part.
    """

    opening: str = ""
    parts: list[tuple[str, int | _Group]] = field(default_factory=list)
    head: str = ""
    tail: str = ""

    def add(self, part: int | _Group) -> None:
        if self.parts:
            self.parts.append((self.tail, part))
        else:
            self.head = self.tail
            self.parts.append(("", part))
        self.tail = ""

    def fill(self, values: Sequence[str]) -> str:
        """The text; empty if none of the group's values is left."""
        filled = [
            (between, values[part] if isinstance(part, int) else part.fill(values))
            for between, part in self.parts
        ]
        kept = [(between, text) for between, text in filled if text]
        if not kept:
            return ""
        rest = "".join(between + text for between, text in kept[1:])
        text = self.head + kept[0][1] + rest + self.tail
        return self.opening + text + _CLOSING.get(self.opening, "")


class ItemTemplate:
    """A parsed template.

    Attributes:
        columns: names of its columns, each once, in the order of the template.
    """

    def __init__(self, template: str) -> None:
        """Parse a template.

        Raises:
            ValueError: it has no column, or braces or brackets that do not match.
        """
        self.columns: list[str] = []
        self._whole = _Group()
        open_groups = [self._whole]
        for is_column, text in _pieces(template):
            group = open_groups[-1]
            if is_column:
                if text not in self.columns:
                    self.columns.append(text)
                group.add(self.columns.index(text))
            elif text in _CLOSING:
                open_groups.append(_Group(text))
            elif text not in _CLOSING.values():
                group.tail += text
            elif len(open_groups) == 1 or _CLOSING[group.opening] != text:
                raise ValueError(f"{text!r} closes no bracket")
            else:
                open_groups.pop()
                if group.parts:
                    open_groups[-1].add(group)
                else:  # text in brackets, without a column
                    open_groups[-1].tail += group.opening + group.tail + text
        if len(open_groups) > 1:
            raise ValueError(f"{open_groups[-1].opening!r} is not closed")
        if not self.columns:
            raise ValueError("it names no column in braces")

    def fill(self, values: Sequence[str]) -> str:
        """The text of an item.

        Args:
            values: of `columns`; empty where they are missing.
        """
        return self._whole.fill(values)


def _pieces(template: str) -> Iterator[tuple[bool, str]]:
    """Yield the columns of a template (True) and the characters between them (False)."""
    for text, column, form, conversion in Formatter().parse(template):
        yield from ((False, character) for character in text)
        if column is None:
            continue
        if form or conversion or not column.strip():
            raise ValueError("braces hold the name of a column and nothing else")
        yield True, column.strip()
