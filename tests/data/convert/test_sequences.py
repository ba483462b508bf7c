"""Lines of users with items: P5, S3-Rec, TransRec, IDGenRec."""

import json

import pytest

LINES = "1 12 7 3\n2 7\n"
TITLES = json.dumps({"12": "Nail &amp; Polish", "7": '"Quoted" soap', "9": "Unused"})
META = (
    "{'asin': 'B12', 'title': 'Polish'}\n{'asin': 'B7', 'title': 'Soap', 'brand': 'x'}\n"
    "{'asin': 'B9', 'title': 'Unused'}\n"
)
MAPS = json.dumps({"item2id": {"B12": "12", "B7": 7, "B3": "3"}, "id2user": {}})


def test_places_and_the_split(convert):
    made = convert("sequences", {"sequential_data.txt": LINES, "id2title.json": TITLES})
    assert made.rows("inter") == [
        ["1", "12", "0"],
        ["1", "7", "1"],
        ["1", "3", "2"],
        ["2", "7", "0"],
    ]
    assert made.items("title") == {
        "12": ("Nail & Polish",),
        "7": ('"Quoted" soap',),
        "3": ("",),
    }
    assert "split: {'LS': valid_and_test}" in made.yaml and "order: TO" in made.yaml
    assert made.report["counts"]["items_without_a_row"] == 1


@pytest.mark.parametrize(
    "files",
    [
        {"meta.json.gz": META, "datamaps.json": MAPS},
        {"item_plain_text.txt": "12 Polish\n7 Soap\n"},
        {"id2name.txt": "12::Polish\n7::Soap\n"},
        {"title_maps.json": json.dumps({"id2title": {"12": "Polish", "7": "Soap"}})},
    ],
)
def test_where_titles_come_from(convert, files):
    made = convert("sequences", {"sequential_data.txt": LINES, **files})
    assert made.items("title") == {"12": ("Polish",), "7": ("Soap",), "3": ("",)}


def test_asins_need_no_map(convert):
    files = {"user_sequence.txt": "A1 B12 B7\r\nA2 B7 B12\r\n", "meta_Beauty.json": META}
    made = convert("sequences", files)
    assert made.items("title") == {"B12": ("Polish",), "B7": ("Soap",)}


def test_a_name_of_ones_own(convert):
    files = {"Beauty.txt": LINES, "id2title.json": TITLES}
    assert len(convert("sequences", files, "--sequences=Beauty.txt").rows("inter")) == 4


def test_users_twice_or_without_items(convert):
    files = {"sequential_data.txt": LINES + "3\n1 7\n", "id2title.json": TITLES}
    made = convert("sequences", files)
    assert [(line, reason) for _, line, reason in made.reasons()] == [
        (3, "user without items"),
        (4, "user twice"),
    ]


def test_titles_are_asked_for_and_pickles_are_not_read(conversion_error):
    files = {"sequential_data.txt": LINES}
    assert "has no titles: put id2title.json" in conversion_error("sequences", files)
    files["title_maps.npy"] = b"\x93NUMPY"
    assert "is a pickle, which can run any code" in conversion_error("sequences", files)
