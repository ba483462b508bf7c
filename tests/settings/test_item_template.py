"""Templates of item texts: missing values leave no traces."""

import pytest

from recbole_multdpo.settings.item_template import ItemTemplate


@pytest.mark.parametrize(
    ("template", "values", "text"),
    [
        ("{title} ({brand})", ["Balm", "Acme"], "Balm (Acme)"),
        ("{title} ({brand})", ["Balm", ""], "Balm"),
        ("{title} ({brand})", ["", "Acme"], "(Acme)"),
        ("{title} ({brand})", ["", ""], ""),
        ("{title} by {brand}, {kind}", ["Balm", "", "Lips"], "Balm, Lips"),
        ("{brand}: {title}", ["", "Balm"], "Balm"),
        ("Film: {title}!", ["Heat"], "Film: Heat!"),
        ("Film: {title} ({year})!", ["", "1995"], "Film: (1995)!"),
        ("{t} ({a}, {b})", ["X", "", "2"], "X (2)"),
        ("{t} ({a}, {b})", ["X", "1", ""], "X (1)"),
        ("{t} ({a}, {b})", ["X", "", ""], "X"),
        ("{t} [by {a} ({b})]", ["X", "", "2"], "X [by (2)]"),
        ("{t} [by {a} ({b})]", ["X", "", ""], "X"),
        ("{t} (new) {a}", ["X", "1"], "X (new) 1"),
        ("{t} (new) {a}", ["X", ""], "X"),
        ("{{{t}}}", ["X"], "{X}"),
        ("{a} {b} {a}", ["1", "2"], "1 2 1"),
        ("{movie_title | name }", ["Heat"], "Heat"),
    ],
)
def test_filling(template, values, text):
    assert ItemTemplate(template).fill(values) == text


def test_columns_in_their_order_without_repetitions():
    template = ItemTemplate("{b} ({a}) {b} {movie_title | name }")
    assert template.columns == ["b", "a", "movie_title | name"]


def test_values_are_no_templates():
    assert ItemTemplate("{a} ({b})").fill(["{b}", "( ]"]) == "{b} (( ])"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("title", "names no column"),
        ("", "names no column"),
        ("{title", "expected '}'"),
        ("{title}}", "Single '}'"),
        ("{}", "name of a column"),
        ("{title!r}", "name of a column"),
        ("{title:>9}", "name of a column"),
        ("{title} (", r"'\(' is not closed"),
        ("{title})", r"'\)' closes no bracket"),
        ("({title}]", r"'\]' closes no bracket"),
    ],
)
def test_malformed(template, problem):
    with pytest.raises(ValueError, match=problem):
        ItemTemplate(template)
