"""Atomic files that lie packed, and the real ones of the test data."""

import os
from pathlib import Path

import pytest

from recbole_multdpo.data.convert.__main__ import main
from tests.data.convert.conftest import Converted

INTER = "user_id:token\titem_id:token\trating:float\n1\t2\t5\n1\t3\t4\n"
ITEM = 'item_id:token\ttitle:token_seq\tprice:float\n2\t"Crocodile"\t1.5\n3\tNext\t\n'


def test_packed_files(convert):
    made = convert("atomic", {"x.inter.gz": INTER, "x.item.gz": ITEM}, "--positive=4")
    assert made.rows("inter") == [["1", "2", "5"], ["1", "3", "4"]]
    assert made.items("title", "price") == {"2": ('"Crocodile"', "1.5"), "3": ("Next", "")}
    assert 'rating: "[4,inf)"' in made.yaml and "inter: [user_id, item_id, rating]" in made.yaml


def test_parts(convert):
    files = {"x.train.inter": INTER, "x.test.inter.gz": INTER, "x.item": ITEM}
    made = convert("atomic", files)
    assert made.rows("train.inter") == made.rows("test.inter") == [["1", "2", "5"], ["1", "3", "4"]]
    assert "benchmark_filename: [train, test]" in made.yaml


def test_rejects(convert):
    files = {"x.inter": INTER + "1\t2\n\t2\t5\n", "x.item": ITEM + "2\tAgain\t1\n"}
    assert [reason for _, _, reason in convert("atomic", files).reasons()] == [
        "2 columns instead of 3",
        "empty id",
        "item listed twice",
    ]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"x.inter": INTER, "x.item": ITEM.replace("title", "label")}, "Name the titles by --text"),
        ({"x.inter": INTER, "x.item": ITEM.replace(":token_seq", "")}, "no column of an atomic"),
        ({"x.inter": INTER.replace("item_id", "id"), "x.item": ITEM}, "no column item_id; it has"),
        ({"x.item": ITEM}, "has no *.inter"),
        ({"x.inter": INTER.encode() + b"\xff\t1\t2\n", "x.item": ITEM}, "line 4: not utf-8"),
    ],
)
def test_files_that_do_not_fit(conversion_error, files, said):
    assert said in conversion_error("atomic", files)


DATA = Path(os.environ.get("MULTDPO_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data")


@pytest.mark.parametrize(
    ("name", "rows", "users"),
    [
        ("amazon-beauty-5core", {"inter": 198_502, "item": 12_101}, 22_363),
        ("lastfm-colakg", {"train.inter": 57_786, "test.inter": 13_508, "item": 2_813}, 1_859),
    ],
)
def test_real_files(tmp_path, name, rows, users):
    if not (DATA / name).is_dir():
        pytest.skip(f"no {DATA / name}: set MULTDPO_TEST_DATA to the folder with the data sets")
    arguments = ["--input", str(DATA / name), "--output", str(tmp_path / name)]
    assert main(["atomic", *arguments]) == 0
    made = Converted(tmp_path / name)
    assert made.report["rows"] == rows and made.report["counts"]["users"] == users
    assert not made.rejected
