"""Item texts from a RecBole .item file."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_multdpo.data.item_text import clean_text, make_item_texts, read_item_file
from recbole_multdpo.errors import DataError

HEADER = "item_id:token\ttitle:token_seq\tyear:token"


@pytest.fixture
def item_file(tmp_path):
    """Write bytes or text and read the columns title and year."""

    def read(content, columns=("title", "year")):
        path = tmp_path / "toy.item"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_item_file(path, columns, "item_id")

    return read


# -------------------------------------------------------------------------------------------------
# cleaning


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  Toy   Story ", "Toy Story"),
        ("a\tb\nc\rd\x00e\x1ff\x7fg\x85h", "a b c d e f g h"),  # control characters
        ("a\u00a0b\u2003c\u2028d\u3000e", "a b c d e"),  # Unicode's white space
        ("Ame\u0301lie", "Am\u00e9lie"),  # composed
        ("\u212bngstrom", "\u00c5ngstrom"),  # NFC replaces the Angstrom sign ...
        ("\ufb01lm", "\ufb01lm"),  # ... but not the ligature, as NFKC would
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),  # a joined emoji
        ("\u05e9\u05dc\u05d5\u05dd \u200f(1995)", "\u05e9\u05dc\u05d5\u05dd \u200f(1995)"),
        ("\x00\t ", ""),
    ],
)
def test_clean_text(raw, clean):
    assert clean_text(raw) == clean


@given(st.text())
def test_clean_text_is_one_composed_line_and_stays_so(text):
    clean = clean_text(text)
    assert clean_text(clean) == clean == unicodedata.normalize("NFC", clean)
    assert not any(unicodedata.category(char) == "Cc" for char in clean)
    assert clean == " ".join(clean.split())


# -------------------------------------------------------------------------------------------------
# reading


def test_quotation_marks_are_characters(item_file):
    rows = item_file(f'{HEADER}\n1\t"Toy\t1995\n2\tSay "Hi", he\'s in\t1996\n')
    assert rows == {"1": ('"Toy', "1995"), "2": ('Say "Hi", he\'s in', "1996")}


def test_a_file_that_a_csv_writer_quoted_is_read_by_its_rules(item_file):
    rows = item_file(f'{HEADER}\n1\t"Say ""Hi"", he\'s in"\t1995\n2\tHeat\t1996\n')
    assert rows == {"1": ('Say "Hi", he\'s in', "1995"), "2": ("Heat", "1996")}
    # one row that does not follow them, and all of it is text
    rows = item_file(f'{HEADER}\n1\t"Say ""Hi"""\t1995\n2\t"Heat" II\t1996\n')
    assert rows == {"1": ('"Say ""Hi"""', "1995"), "2": ('"Heat" II', "1996")}


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("Pen &amp; Ink", "Pen & Ink"),
        ("Collector&#39;s Box, 8.5&rdquo;", "Collector's Box, 8.5\u201d"),
        ("&#x27;Til&nbsp;Then", "'Til Then"),
        ("R&amp;amp;B", "R&B"),  # escaped twice
        ("AT&T; &copy that & more", "AT&T; &copy that & more"),  # no entities
    ],
)
def test_html_entities_are_decoded_and_counted(written, text):
    texts, report = make_item_texts(["[PAD]", "1", "2"], {"1": (written,), "2": ("Heat",)}, 1)
    assert texts == ["[PAD]", text, "Heat"]
    assert report.n_entities == (written != text)


def test_columns_come_in_the_order_asked_for(item_file):
    assert item_file(f"{HEADER}\n1\tToy\t1995\n", ("year", "title")) == {"1": ("1995", "Toy")}


def test_byte_order_mark_and_windows_line_ends(item_file):
    content = f"\ufeff{HEADER}\r\n1\tToy\t1995\r\n2\tHeat\t\r\n"
    assert item_file(content) == {"1": ("Toy", "1995"), "2": ("Heat", "")}


def test_a_carriage_return_or_line_separator_inside_a_text_is_white_space(item_file):
    """`str.splitlines` and Python's universal newlines would both cut these rows in two."""
    content = f"{HEADER}\n1\tToy\rStory\x0b\u2028II\t1995\n2\tHeat\t1995\n"
    assert item_file(content) == {"1": ("Toy Story II", "1995"), "2": ("Heat", "1995")}


def test_blank_lines_and_a_missing_last_line_end_do_not_matter(item_file):
    assert item_file(f"{HEADER}\n\n1\tToy\t1995\n  \n\t\t\n2\tHeat\t1995") == {
        "1": ("Toy", "1995"),
        "2": ("Heat", "1995"),
    }


def test_ids_are_taken_as_written(item_file):
    """RecBole's tokens are strings too: 01 and 1 are two items, spaces belong to the id."""
    assert list(item_file(f"{HEADER}\n01\ta\t\n1\tb\t\n x\tc\t\n")) == ["01", "1", " x"]


def test_another_separator(tmp_path):
    path = tmp_path / "toy.item"
    path.write_text("item_id:token|title:token\n7|a\tb\n")
    assert read_item_file(path, ["title"], "item_id", "|") == {"7": ("a b",)}


# -------------------------------------------------------------------------------------------------
# reading: errors


def test_errors_name_file_line_and_remedy(item_file):
    with pytest.raises(DataError, match=r"toy\.item, line 3: 2 columns instead of 3.*tab"):
        item_file(f"{HEADER}\n1\tToy\t1995\n2\tHeat\n")
    with pytest.raises(DataError, match=r"toy\.item, line 2: 4 columns instead of 3"):
        item_file(f"{HEADER}\n1\tToy\tStory\t1995\n")
    with pytest.raises(DataError, match=r"toy\.item, line 4: duplicate item '1'"):
        item_file(f"{HEADER}\n1\tToy\t1995\n\n1\tHeat\t1995\n")


def test_missing_columns_are_named_with_those_there_are(item_file):
    with pytest.raises(DataError, match=r"line 1: no column 'name'; .*item_id, title, year"):
        item_file(f"{HEADER}\n1\tToy\t1995\n", ("name",))
    with pytest.raises(DataError, match=r"no column 'item_id', 'title'.*--item_text_fields"):
        item_file("id:token\tyear:token\n1\t1995\n")


def test_an_empty_file(item_file):
    with pytest.raises(DataError, match=r"toy\.item, line 1: .*no header"):
        item_file("")
    assert item_file(f"{HEADER}\n") == {}


def test_a_file_that_is_not_utf8(item_file):
    with pytest.raises(DataError, match=r"toy\.item is not utf-8 .*0xe9.*--encoding=latin-1"):
        item_file(f"{HEADER}\n1\tAm\u00e9lie\t2001\n".encode("latin-1"))


def test_an_absent_or_unreadable_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.item does not exist.*item_id and title"):
        read_item_file(tmp_path / "none.item", ["title"], "item_id")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        read_item_file(tmp_path, ["title"], "item_id")


# -------------------------------------------------------------------------------------------------
# one text per item


def texts_of(rows, n_text_columns=1, tokens=None):
    return make_item_texts(["[PAD]", *(tokens or rows)], rows, n_text_columns)


def test_the_year_is_appended_only_to_disambiguate():
    texts, report = texts_of(
        {
            "1": ("Hamlet", "1990"),
            "2": ("Hamlet", "1996"),
            "3": ("Heat", "1995"),
            "4": ("Chasing Amy", "1997"),  # the same film twice, as in MovieLens
            "5": ("Chasing Amy", "1997"),
            "6": ("Sabrina", ""),
            "7": ("Sabrina", "1954"),
        }
    )
    assert texts == [
        "[PAD]",
        "Hamlet (1990)",
        "Hamlet (1996)",
        "Heat",
        "Chasing Amy",
        "Chasing Amy",
        "Sabrina",
        "Sabrina (1954)",
    ]
    assert (report.n_items, report.n_with_year, report.n_shared) == (7, 3, 2)


def test_items_that_share_a_text_stay_two_items():
    texts, report = texts_of({"1": ("Heat",), "2": ("Heat",), "3": ("Casino",)})
    assert texts[1:] == ["Heat", "Heat", "Casino"]
    assert (report.n_shared, report.n_with_year) == (2, 0)
    assert "2 that share a text" in str(report)


def test_a_year_that_makes_two_texts_equal_is_counted():
    """Another item's title is "Hamlet (1996)"."""
    texts, report = texts_of(
        {"1": ("Hamlet", "1996"), "2": ("Hamlet", "1990"), "3": ("Hamlet (1996)", "")}
    )
    assert texts[1:] == ["Hamlet (1996)", "Hamlet (1990)", "Hamlet (1996)"]
    assert (report.n_with_year, report.n_shared) == (2, 2)


def test_text_columns_are_joined_without_the_empty_ones():
    texts, _ = texts_of(
        {"1": ("Heat", "Crime", "x"), "2": ("", "Drama", "x"), "3": ("Up", "", "x")}, 2
    )
    assert texts[1:] == ["Heat, Crime", "Drama", "Up"]


def test_items_without_text_are_called_by_their_id_and_counted():
    texts, report = texts_of({"a": ("",), "b": ("Heat",)}, tokens=["a", "b", "c"])
    assert texts == ["[PAD]", "item a", "Heat", "item c"]
    assert (report.n_missing, report.n_empty, report.n_shared) == (1, 1, 0)
    assert "1 items missing" in str(report) and "1 without text" in str(report)


def test_an_item_called_pad_is_an_ordinary_item():
    texts, report = texts_of({"1": ("[PAD]", "2001")})
    assert texts == ["[PAD]", "[PAD]"]
    assert (report.n_with_year, report.n_shared) == (0, 0)


def test_a_catalogue_without_any_text_is_an_error():
    for rows in ({}, {"1": ("", "1995"), "2": ("", "1996")}):
        with pytest.raises(DataError, match=r"no item of the catalogue has a text.*item ids"):
            make_item_texts(["[PAD]", "1", "2"], rows, 1)


def test_rows_outside_the_catalogue_are_ignored():
    texts, report = texts_of({"1": ("Heat",), "9": ("Heat",)}, tokens=["1"])
    assert texts == ["[PAD]", "Heat"]
    assert (report.n_items, report.n_shared) == (1, 0)
