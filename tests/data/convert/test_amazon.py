"""Amazon Reviews of three editions, as rows with the fields that UCSD documents."""

import json

import pytest

# https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html: Python literals, one per line
REVIEW_2014 = (
    "{'reviewerID': %r, 'asin': %r, 'reviewerName': 'J. \"B\"', 'helpful': [2, 3], 'reviewText': "
    "\"It's\", 'overall': %r, 'summary': 'x', 'unixReviewTime': %r, 'reviewTime': '09 13, 2009'}\n"
)
META_2014 = (
    "{'asin': 'B1', 'title': \"Girl's Tutu &amp; more\", 'price': 3.17, 'salesRank': {'Toys': 2}, "
    "'brand': 'Coxlures', 'categories': [['Sports', 'Dance'], ['Toys']]}\n"
    "{'asin': 'B2', 'categories': [['Sports']]}\n"
    "{'asin': 'B9', 'title': 'Never reviewed'}\n"
)
ROWS = [("u1", "B1", 5.0, 1252800000), ("u1", "B2", 1.0, 1252800001), ("u2", "B1", 4.0, 1)]


def reviews_2014(rows=ROWS):
    return "".join(REVIEW_2014 % row for row in rows)


def reviews_2018(rows=ROWS):
    keys = ("reviewerID", "asin", "overall", "unixReviewTime")
    return [{**dict(zip(keys, row, strict=True)), "verified": True, "style": {}} for row in rows]


def reviews_2023(rows=ROWS):
    keys = ("user_id", "parent_asin", "rating", "timestamp")
    return [
        {**dict(zip(keys, row, strict=True)), "asin": "variant", "title": "of the review"}
        for row in rows
    ]


META_2018 = [
    {"asin": "B1", "title": "Tutu", "brand": "Cox", "category": ["Sports", "Dance"]},
    {"asin": "B1", "title": "Tutu", "brand": "Cox", "category": ["Sports", "Dance"]},
    {"asin": "B2", "title": "var aPageStart = (new Date()).getTime();", "brand": ""},
]
META_2023 = [
    {"parent_asin": "B1", "title": "Tutu", "store": "Cox", "categories": ["Sports", "Dance"]},
    {"parent_asin": "B2", "title": None, "store": None, "categories": []},
]
META_FILE, ANY = "meta_Toys.json.gz", ["--k-core=1"]


@pytest.mark.parametrize(
    ("reviews", "files", "title"),
    [
        ("reviews_Toys_5.json.gz", (reviews_2014(), META_2014), "Girl's Tutu & more"),
        ("Toys_5.json.gz", (reviews_2018(), META_2018), "Tutu"),
        ("Toys.jsonl.gz", (reviews_2023(), META_2023), "Tutu"),
        ("ratings_Toys.csv", ("A0000000000001,B1,5.0,1252800000\nA0000000000001,B2,1.0,1252800001\n"
                              "A0000000000002,B1,4.0,1\n", META_2014), "Girl's Tutu & more"),
        ("Toys.csv", ("B1,A0000000000001,5.0,1252800000\nB2,A0000000000001,1.0,1252800001\n"
                      "B1,A0000000000002,4.0,1\n", META_2018), "Tutu"),
        ("Toys.csv.gz", ("user_id,parent_asin,rating,timestamp\nu1,B1,5.0,1252800000\n"
                      "u1,B2,1.0,1252800001\nu2,B1,4.0,1\n", META_2023), "Tutu"),
    ],
)  # fmt: skip
def test_editions(convert, reviews, files, title):
    made = convert("amazon", {reviews: files[0], META_FILE: files[1]}, *ANY)
    assert [row[1:] for row in made.rows("inter")] == [
        ["B1", "5", "1252800000"],
        ["B2", "1", "1252800001"],
        ["B1", "4", "1"],
    ]
    assert len({row[0] for row in made.rows("inter")}) == 2
    items = made.items("title", "brand", "categories")
    assert items["B1"][0] == title and items["B1"][1].startswith("Cox")
    assert items["B1"][2] == "Sports, Dance" and items["B2"][0] == ""
    assert set(items) == {"B1", "B2"}
    assert "val_interval: ~" in made.yaml and not made.rejected
    assert "Amazon Reviews 20" in made.yaml


def test_five_core_and_repeated_reviews(convert):
    rows = [(f"u{u}", f"B{b}", 5.0, u * b) for u in range(5) for b in range(5)]
    rows += [("u0", "B0", 3.0, 9), ("u9", "B0", 5.0, 1), ("u0", "B9", 5.0, 1)] * 2
    meta = [{"parent_asin": f"B{b}", "title": f"T{b}"} for b in range(10)]
    made = convert("amazon", {"Toys.jsonl": reviews_2023(rows), "meta_Toys.jsonl": meta})
    assert len(made.rows("inter")) == 25
    assert list(made.items("title")) == [f"B{b}" for b in range(5)]
    assert made.report["counts"]["interactions_repeated"] == 2


def test_low_ratings_stay_and_do_not_count(convert):
    files = {"Toys.jsonl": reviews_2023(), "meta_Toys.jsonl": META_2023}
    made = convert("amazon", files, "--k-core=1", "--min-rating=4")
    assert len(made.rows("inter")) == 3
    assert 'val_interval: {rating: "[4,inf)"}' in made.yaml


def test_rejects_and_nothing_run(convert, tmp_path):
    mark = tmp_path / "run"
    bad = (
        f"__import__('pathlib').Path({str(mark)!r}).touch()\n"
        "[1]\n{'reviewerID': 'u'\n"
        + REVIEW_2014 % ("", "B1", 5.0, 1)
        + "{'reviewerID': 'u', 'asin': 'B1', 'unixReviewTime': 1}\n"
        + "(" * 3000
        + "\n"
    )
    files = {"reviews_Toys.json": reviews_2014() + bad, "meta_Toys.json": META_2014}
    made = convert("amazon", files, *ANY)
    assert [(line, reason) for _, line, reason in made.reasons()] == [
        (4, "neither JSON nor a Python literal"),
        (5, "not an object"),
        (6, "neither JSON nor a Python literal"),
        (7, "no user or no product"),
        (8, "rating that is not a number"),
        (9, "neither JSON nor a Python literal"),
    ]
    assert not mark.exists()


def test_missing_metadata(conversion_error):
    assert "has no meta_*.json" in conversion_error("amazon", {"Toys.jsonl": reviews_2023()})


def test_missing_reviews(conversion_error):
    said = conversion_error("amazon", {"meta_Toys.jsonl": META_2023})
    assert "reviews, or a CSV of ratings" in said


def test_several_files_of_reviews(conversion_error):
    files = {"a.jsonl": reviews_2023(), "b.jsonl": reviews_2023(), "meta_Toys.jsonl": META_2023}
    assert "several files of the same kind (a.jsonl, b.jsonl)" in conversion_error("amazon", files)


def test_another_kind_of_json(conversion_error):
    files = {"Toys.jsonl": [{"a": 1}], "meta_Toys.jsonl": META_2023}
    assert "nothing to convert" in conversion_error("amazon", files)


def test_metadata_is_read_by_either_edition(convert):
    files = {"Toys_5.json": json.dumps(reviews_2018()[0]) + "\n", "meta_Toys.json": META_2014}
    assert convert("amazon", files, *ANY).items("title")["B1"] == ("Girl's Tutu & more",)
