"""Escape text from data and settings for the place where it is shown.

Titles, ids and names come from untrusted files. A terminal executes escape sequences, a spreadsheet
evaluates cells that begin with an equals sign, and Markdown, LaTeX, HTML and matplotlib have
special characters. There is one function per place; each leaves ordinary text as it is.
"""

from __future__ import annotations

import html as html_library
import json
import re
import sys
import unicodedata
from typing import Any, TextIO

# invisible characters that words and emoji need; other invisible ones can reverse a line
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


def terminal(text: object, *, lines: bool = False) -> str:
    r"""Escape control characters, which a terminal would execute, as `\x1b` and the like.

    Args:
        text: anything; its `str` is used.
        lines: keep line ends.
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
    """Print any text to any stream: control and unencodable characters are escaped.

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
    """Print data as one line of JSON; characters that stdout cannot encode are escaped."""
    text = json.dumps(value, ensure_ascii=False)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
        is_plain = terminal(text) == text
    except UnicodeEncodeError:
        is_plain = False
    print(text if is_plain else json.dumps(value), flush=flush)


def markdown(text: object) -> str:
    """Escape for a cell or a sentence of Markdown."""
    return re.sub(r"([\\`*|\[\]$<])", r"\\\1", terminal(text))


def code(text: object) -> str:
    """Escape for inline code between backticks in Markdown."""
    return terminal(text).replace("`", "'")


def latex(text: object) -> str:
    """Escape for a LaTeX table."""
    return "".join(_LATEX.get(letter, letter) for letter in terminal(text))


def html(text: object) -> str:
    """Escape for HTML text and attributes, and for names in plotly, which reads them as HTML."""
    return html_library.escape(terminal(text))


def mathtext(text: object) -> str:
    """Escape for a matplotlib label: no formulas, and no leading underscore, which hides it."""
    shown = terminal(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def csv_cell(value: Any) -> Any:
    """Escape for a CSV cell: text that a spreadsheet would evaluate gets a leading apostrophe.

    Numbers, also as text, stay as they are. `csv_text` removes the apostrophe.
    """
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    return f"'{value}" if _FORMULA.match(value) else value


def csv_text(cell: Any) -> Any:
    """Undo `csv_cell`."""
    if not isinstance(cell, str) or not cell.startswith("'"):
        return cell
    return cell[1:] if _FORMULA.match(cell[1:]) and not _NUMBER.fullmatch(cell[1:]) else cell
