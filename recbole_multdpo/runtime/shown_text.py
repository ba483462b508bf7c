"""Text from data and settings, made harmless for the place where it is shown.

Titles, ids and names come from files that anybody may have made. A terminal obeys escape sequences,
a spreadsheet computes what begins with an equals sign, Markdown, LaTeX, YAML, HTML and matplotlib
have signs of their own. One function per place; each leaves ordinary text as it is.
"""

from __future__ import annotations

import html as html_library
import json
import re
import sys
import unicodedata
from typing import Any, TextIO

# invisible letters that words and emoji need; what else is invisible can turn a line around
_JOINERS = "\u200c\u200d"
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    **{letter: f"\\{letter}" for letter in "_%&#$"},
}
_PLAIN_YAML = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_YAML_WORDS = frozenset("true false yes no on off null none y n".split())


def terminal(text: object, *, lines: bool = False) -> str:
    r"""Without what a terminal obeys: such letters are shown as `\x1b` and the like.

    Args:
        text: anything; its `str` is taken.
        lines: leave line ends as they are.
    """
    found = str(text)
    if found.isascii() and found.isprintable():
        return found
    return "".join(
        letter if _is_shown(letter) or lines and letter == "\n" else _escaped(letter)
        for letter in found
    )


def _is_shown(letter: str) -> bool:
    return letter in _JOINERS or unicodedata.category(letter) not in _HIDDEN


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def show(text: object, stream: TextIO | None = None, *, flush: bool = False) -> None:
    """Print, whatever the text holds and whatever the stream can encode.

    Args:
        text: lines of text.
        stream: by default stdout.
        flush: as for `print`.
    """
    stream = sys.stdout if stream is None else stream
    encoding = getattr(stream, "encoding", None) or "utf-8"
    shown = terminal(text, lines=True).encode(encoding, "backslashreplace").decode(encoding)
    print(shown, file=stream, flush=flush)


def show_json(value: Any, *, flush: bool = False) -> None:
    """Print data as one line of JSON; letters that stdout cannot encode are written as numbers."""
    text = json.dumps(value, ensure_ascii=False)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
        is_plain = terminal(text) == text
    except UnicodeEncodeError:
        is_plain = False
    print(text if is_plain else json.dumps(value), flush=flush)


def markdown(text: object) -> str:
    """For a cell or a sentence of Markdown."""
    return re.sub(r"([\\`*|\[\]$<])", r"\\\1", terminal(text))


def code(text: object) -> str:
    """For a few words of code between backticks in Markdown."""
    return terminal(text).replace("`", "'")


def latex(text: object) -> str:
    """For a table of LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in terminal(text))


def html(text: object) -> str:
    """For HTML, in text and in attributes, and for plotly's names, which are read as HTML."""
    return html_library.escape(terminal(text))


def mathtext(text: object) -> str:
    """For a label of matplotlib: no formulas, and no first underscore, which hides a label."""
    shown = terminal(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def yaml_scalar(text: object) -> str:
    """For one value of YAML on one line, such as in the head of a model card."""
    shown = terminal(text)
    if _PLAIN_YAML.fullmatch(shown) and shown.lower() not in _YAML_WORDS:
        return shown
    return json.dumps(shown, ensure_ascii=False)


def csv_cell(value: Any) -> Any:
    """For a cell of CSV: text that a spreadsheet would compute gets an apostrophe before it.

    Numbers, also as text, stay as they are. `csv_text` takes the apostrophe away.
    """
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}" if _FORMULA.match(value) else value


def csv_text(cell: Any) -> Any:
    """What `csv_cell` was given."""
    if not isinstance(cell, str) or not cell.startswith("'"):
        return cell
    return cell[1:] if _FORMULA.match(cell[1:]) and not _NUMBER.fullmatch(cell[1:]) else cell
