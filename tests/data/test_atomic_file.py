"""The reader of atomic files: rows as written, or an error with line and remedy."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_multdpo.data.atomic_file import (
    check_atomic_files,
    check_header,
    open_atomic_file,
    read_columns,
    read_table,
)
from recbole_multdpo.errors import DataError
from recbole_multdpo.settings.config import load_config
from tests.integration.toy import classical_arguments, write_toy

HEADER = "item_id:token\ttitle:token_seq\tprice:float"


@pytest.fixture
def table(tmp_path):
    """Write a text and read all of its columns as RecBole's table."""

    def read(content, separator="\t", encoding="utf-8", **options):
        path = tmp_path / "toy.item"
        path.write_bytes(content.encode(encoding))
        file = open_atomic_file(path, separator, encoding)
        check_header(file, ["item_id"])
        return read_table(file, file.columns, ["item_id"], **options)

    return read


# -------------------------------------------------------------------------------------------------
# the same table as RecBole's


def test_a_plain_file_gives_the_table_that_recbole_reads_with_pandas(table, tmp_path):
    content = f'{HEADER}\n1\tToy Story\t0.1\n02\tHeat 6" cut\t-3e5\n\n3\tHelp\t7\n'
    ours = table(content)
    theirs = pd.read_csv(
        tmp_path / "toy.item",
        delimiter="\t",
        dtype={"item_id:token": str, "title:token_seq": str, "price:float": np.float64},
        engine="python",
    )
    theirs.columns = ["item_id", "title", "price"]
    pd.testing.assert_frame_equal(ours, theirs, check_dtype=True)


def test_large_files_are_read_in_blocks(table, monkeypatch):
    monkeypatch.setattr("recbole_multdpo.data.atomic_file._BLOCK", 7)
    rows = [f"i{n}\tTitle {n}\t{n / 3!r}" for n in range(100)]
    found = table("\n".join([HEADER, *rows]))
    assert found["item_id"].tolist() == [f"i{n}" for n in range(100)]
    assert found["price"].tolist() == [n / 3 for n in range(100)]
    with pytest.raises(DataError, match="line 52: 2 columns instead of 3"):
        table("\n".join([HEADER, *rows[:50], "i50\tshort", *rows[51:]]))


def test_only_an_empty_token_is_missing(table):
    """pandas would read NA, null and nan as missing too, and RecBole would drop their rows."""
    found = table("item_id:token\tgenre:token\nNA\tnull\nnan\t\n")
    assert found["item_id"].tolist() == ["NA", "nan"]
    assert found["genre"].isna().tolist() == [False, True]


def test_allowed_empty_numbers_are_missing_values(table):
    content = f"{HEADER}\n1\ta\t1.5\n2\tb\t\n3\tc\tNA\n"
    prices = table(content)["price"]
    assert prices[0] == 1.5 and prices.isna().tolist() == [False, True, True]
    with pytest.raises(DataError, match=r"line 3: price is ''.*remove price from --load_col"):
        table(content, may_be_empty=["rating"])


@pytest.mark.parametrize("value", ["free", "inf", "-inf", "1,5", "1.2.3"])
def test_a_malformed_number_is_named(table, value):
    with pytest.raises(DataError, match=f"line 2: price is {value!r} and not a finite number"):
        table(f"{HEADER}\n1\ta\t{value}\n")


def test_an_empty_id_is_named(table):
    with pytest.raises(DataError, match="line 3: item_id is empty.*or remove the row"):
        table(f"{HEADER}\n1\ta\t1\n\tb\t2\n")


# -------------------------------------------------------------------------------------------------
# quotation marks

FIELDS = st.text(st.sampled_from("ab \",;|\\'"), max_size=8).map(lambda text: f"x{text}")


@given(
    rows=st.lists(st.tuples(FIELDS, FIELDS), min_size=1, max_size=5),
    separator=st.sampled_from(",;|"),
)
def test_csv_round_trip(rows, separator, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "toy.item"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=separator, lineterminator="\n")
        writer.writerow(["item_id:token", "title:token"])
        writer.writerows(rows)
    read = read_columns(path, ["item_id", "title"], separator, need="", remedy="")
    assert [tuple(row) for _, row in read] == rows


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC])
def test_a_tab_file_of_pandas_comes_back(tmp_path, quoting):
    titles = ['"Crocodile" Dundee', 'Say "hi"', "Heat", "a\tb"]
    frame = pd.DataFrame({"item_id:token": ["1", "2", "3", "4"], "title:token": titles})
    path = tmp_path / "toy.item"
    header = "\t".join(frame.columns)
    rows = frame.to_csv(sep="\t", index=False, header=False, quoting=quoting)
    path.write_text(f"{header}\n{rows}")
    file = open_atomic_file(path)
    assert read_table(file, file.columns, ["item_id"])["title"].tolist() == titles


@pytest.mark.parametrize("separator", ["\t", ",", ";"])
def test_names_in_the_first_line_may_be_quoted(tmp_path, separator):
    frame = pd.DataFrame({"item_id:token": ["1", "2"], "title:token": ["a;b", 'c,"d"']})
    frame.to_csv(tmp_path / "toy.item", sep=separator, index=False, quoting=csv.QUOTE_ALL)
    file = open_atomic_file(tmp_path / "toy.item", separator)
    assert file.columns == ["item_id", "title"] and file.types == ["token", "token"]
    assert read_table(file, file.columns, ["item_id"])["title"].tolist() == ["a;b", 'c,"d"']


def test_a_separator_of_two_characters_is_no_csv(table):
    content = HEADER.replace("\t", "::") + '\n1::"Crocodile" Dundee::2\n'
    assert table(content, separator="::")["title"].tolist() == ['"Crocodile" Dundee']


@pytest.mark.parametrize(
    "title",
    ['"Crocodile" Dundee', '"Crocodile', '"', 'Say "hi"', '12" vinyl', "'Til", "two\rlines"],
)
def test_in_a_tab_file_a_quotation_mark_is_a_character(table, title):
    found = table(f"{HEADER}\n1\t{title}\t1\n2\tHeat\t2\n")
    assert found["title"].tolist() == [title, "Heat"]


def test_a_quotation_that_swallows_rows_is_text_or_an_error(table):
    rows = '1{0}"Crocodile{0}1\n2{0}Dundee"{0}2\n'
    assert table(HEADER + "\n" + rows.format("\t"))["title"].tolist() == ['"Crocodile', 'Dundee"']
    with pytest.raises(DataError, match=r"line 2.*In CSV a field"):
        table(HEADER.replace("\t", ",") + "\n" + rows.format(","), ",")
    with pytest.raises(DataError, match="line 2: a field begins with .* is only in line 3"):
        table('item_id:token,title:token\n1,"two\nlines"\n', ",")


def test_a_separator_inside_a_text_is_explained_by_the_separator(table):
    with pytest.raises(DataError, match="line 2: 4 columns instead of 3.*tabs inside"):
        table(f"{HEADER}\n1\tRed\tNight\t1\n")
    with pytest.raises(DataError, match="4 columns instead of 3.*quote texts with .*','"):
        table(f"{HEADER}\n1\tRed\tNight\t1\n".replace("\t", ","), ",")


# -------------------------------------------------------------------------------------------------
# encoding


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "shift_jis", "utf-8-sig"])
def test_other_encodings(table, encoding):
    title = {"shift_jis": "七人の侍"}.get(encoding, "Amélie")
    assert table(f"{HEADER}\n1\t{title}\t1\n", encoding=encoding)["title"].tolist() == [title]


def test_a_wrong_or_unknown_encoding_is_named(tmp_path):
    path = tmp_path / "toy.item"
    path.write_bytes(f"{HEADER}\n1\tAmélie\t1\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not utf-8.*--encoding=latin-1"):
        open_file = open_atomic_file(path)
        read_table(open_file, open_file.columns, ["item_id"])
    with pytest.raises(DataError, match="unknown encoding.*--encoding"):
        open_atomic_file(path, encoding="klingon")


def test_numbers_keep_every_digit(table):
    """The two numbers are equal in RecBole's float32 tensors; a split needs the exact values."""
    found = table("item_id:token\ttime:float\n1\t1600000001.5\n2\t1600000002\n")
    assert found["time"].tolist() == [1600000001.5, 1600000002.0]
    assert len(set(found["time"].astype(np.float32))) == 1


def test_a_mistyped_column_of_load_col_is_refused(tmp_path: Path) -> None:
    data = write_toy(tmp_path / "data")
    columns = "{'inter': ['user_id', 'item_id', 'rateing'], 'item': ['item_id']}"
    config = load_config(classical_arguments("Pop", data, tmp_path, f"--load_col={columns}"))
    with pytest.raises(
        DataError, match=r"toy.inter has no column 'rateing'; did you mean rating.*"
    ):
        check_atomic_files(config)
    right = columns.replace("rateing", "rating")
    check_atomic_files(
        load_config(classical_arguments("Pop", data, tmp_path, f"--load_col={right}"))
    )
