"""Text from data cannot do anything where it is shown."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_multdpo.runtime.shown_text import (
    code,
    csv_cell,
    csv_text,
    html,
    latex,
    markdown,
    mathtext,
    show,
    show_json,
    terminal,
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Amélie (2001)", "Amélie (2001)"),
        ("رحلة إلى القمر", "رحلة إلى القمر"),
        ("👩\u200d👧 film", "👩\u200d👧 film"),  # a joiner is part of the letter
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\x1b]0;title\x07b", r"a\x1b]0;title\x07b"),
        ("\x9b31m", r"\x9b31m"),  # an escape sequence of one byte
        ("two\nlines\rback\tand", r"two\nlines\rback\tand"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u2066x\u2069\u200e", r"\u2066x\u2069\u200e"),
        ("\u2028x", r"\u2028x"),
        ("half \ud83d", r"half \ud83d"),
        (None, "None"),
    ],
)
def test_a_terminal_obeys_nothing(text: object, shown: str) -> None:
    assert terminal(text) == shown


def test_lines_stay_where_they_are_wanted() -> None:
    assert terminal("a\nb\x07", lines=True) == "a\nb" + r"\x07"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_stream_takes_any_text(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    show("é π 映画 \ud83d \x1b[0m", stream, flush=True)
    text = raw.getvalue().decode(encoding)
    assert r"\x1b[0m" in text and r"\ud83d" in text
    assert ("π" in text) == (encoding == "utf-8")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_json_is_json_in_any_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    value = {"title": "é\u202e\x1b", "plain": "映画"}
    show_json(value, flush=True)
    show_json({"plain": "映画"}, flush=True)
    first, second = raw.getvalue().decode(encoding).splitlines()
    assert json.loads(first) == value and "\u202e" not in first
    assert json.loads(second) == {"plain": "映画"}
    assert ("映画" in second) == (encoding == "utf-8")


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|'/C calc'!A0", "'+cmd|'/C calc'!A0"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("'=1", "''=1"),  # so that it comes back as it was
        ("-5", "-5"),
        ("+1.5e-3", "+1.5e-3"),
        ("'tis", "'tis"),
        ("u1", "u1"),
        ("", ""),
        (-3, -3),
        (None, None),
    ],
)
def test_a_spreadsheet_computes_nothing(text: object, cell: object) -> None:
    assert csv_cell(text) == cell
    assert csv_text(csv_cell(text)) == text


@given(st.text("'=+-@1a\t", max_size=6))
def test_cells_come_back(text: str) -> None:
    assert csv_text(csv_cell(text)) == text


def test_markdown_stays_in_its_cell() -> None:
    assert markdown("LLMRec mult_dpo, ndcg@10") == "LLMRec mult_dpo, ndcg@10"
    assert markdown("a|b\n| c |") == r"a\|b\\n\| c \|"
    assert markdown("![x](http://e) <b>`$") == r"!\[x\](http://e) \<b>\`\$"
    assert code("a`b\nc") == r"a'b\nc"


def test_latex_runs_no_command() -> None:
    assert latex(r"\input{/etc/passwd}") == r"\textbackslash{}input\{/etc/passwd\}"
    assert latex("a_b%c&d#e$f~g^h") == (r"a\_b\%c\&d\#e\$f\textasciitilde{}g\textasciicircum{}h")


def test_html_is_text() -> None:
    assert html("<script>'\"&\u202e") == r"&lt;script&gt;&#x27;&quot;&amp;\u202e"


def test_matplotlib_draws_no_formula(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    for text in (r"$\frac{1$", "a $ b $ c", "\\$x$", "$$", "\\"):
        figure = Figure()
        label = figure.text(0, 0, mathtext(text))
        figure.savefig(tmp_path / "x.png")
        assert label._preprocess_math(label.get_text())[1] is False
    figure = Figure()
    figure.text(0, 0, r"$\frac{1$")
    with pytest.raises(ValueError):  # control: as it is, it stops the figure
        figure.savefig(tmp_path / "x.png")
    assert mathtext("_hidden") == " _hidden"
    assert mathtext("plain name") == "plain name"
