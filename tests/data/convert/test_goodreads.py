"""UCSD's Goodreads: both formats of interactions, filters, k-core, dates, memory."""

import json
import random
import tracemalloc
from collections import Counter

import pytest

from recbole_multdpo.data.convert import goodreads, stored_rows
from recbole_multdpo.data.convert.__main__ import main

DATE = "Fri Aug 25 13:55:02 -0700 2017"


def read(user, book, rating=5, date=DATE):
    return {"user_id": user, "book_id": book, "rating": rating, "date_added": date}


def book(number, title="Book", **more):
    return {"book_id": number, "title": title, "publication_year": "2001", **more}


BOOKS = [book("11", "Earth's End (Air Awakens, #3)"), book("12", 'A Child Called "It"')]
READS = [read("a", "11"), read("a", "12", 4), read("b", "11", 3), read("b", "12", 0)]


@pytest.mark.parametrize("end", ["", ".gz"])
def test_json(convert, end):
    files = {f"goodreads_books.json{end}": BOOKS, f"goodreads_interactions.json{end}": READS}
    made = convert("goodreads", files, "--k-core", 1)
    assert made.rows("inter") == [["a", "11", "5", "1503694502"], ["a", "12", "4", "1503694502"]]
    assert made.items("title", "publication_year") == {
        "11": ("Earth's End (Air Awakens, #3)", "2001"),
        "12": ('A Child Called "It"', "2001"),
    }
    assert made.report["counts"] == {
        "interactions": {"read": 4, "below_min_rating": 2, "without_a_wanted_book": 0},
        "interactions_read": 2,
        "interactions_repeated": 0,
        "k_core_rounds": 1,
        "users": 1,
        "books_with_a_title": 2,
    }
    assert "timestamp]" in made.yaml and 'rating: "[4,inf)"' in made.yaml


def test_csv_with_separate_ids(convert):
    files = {
        "goodreads_books.json": BOOKS,
        "goodreads_interactions.csv": "user_id,book_id,is_read,rating,is_reviewed\n"
        "0,948,1,5,0\n0,947,1,2,1\n1,9,1,5,0\n1,947,1,x,0\n",
        "book_id_map.csv": "book_id_csv,book_id\n947,11\n948,12\n9,999\n",
    }
    made = convert("goodreads", files, "--k-core", 1, "--min-rating", 1)
    assert made.header("inter") == ["user_id:token", "item_id:token", "rating:float"]
    assert made.rows("inter") == [["0", "12", "5"], ["0", "11", "2"]]
    assert made.report["counts"]["interactions"]["without_a_wanted_book"] == 1
    assert made.reasons() == [("goodreads_interactions.csv", 5, "rating that is not 0 to 5")]
    assert "timestamp" not in made.yaml


def test_the_map_of_ids_is_asked_for(conversion_error):
    files = {
        "goodreads_books.json": BOOKS,
        "goodreads_interactions.csv": "user_id,book_id,rating\n",
    }
    assert "no book_id_map.csv" in conversion_error("goodreads", files)


def test_genres(convert, conversion_error):
    files = {
        "goodreads_books.json": BOOKS,
        "goodreads_interactions.json": READS,
        "goodreads_book_genres_initial.json": [
            {"book_id": "11", "genres": {"poetry": 3, "comics, graphic": 1}},
            {"book_id": "12", "genres": {"children": 9}},
            {"book_id": "13", "genres": {}},
        ],
    }
    message = conversion_error("goodreads", files, "--genres", "poems")
    assert "no book has poems; there are children; comics, graphic; poetry" in message
    made = convert("goodreads", files, "--k-core", 1, "--genres", "poetry", "comics, graphic")
    assert made.rows("inter") == [["a", "11", "5", "1503694502"]]
    assert list(made.items("title")) == ["11"]
    assert "# Genres: poetry, comics, graphic." in made.yaml


def test_genres_without_their_file(conversion_error):
    files = {"goodreads_books.json": BOOKS, "goodreads_interactions.json": READS}
    message = conversion_error("goodreads", files, "--genres", "poetry")
    assert "no goodreads_book_genres_initial.json" in message


def test_rejects(convert):
    files = {
        "goodreads_books.json": [*BOOKS, book("13", " "), book("11"), book("", "x"), {"title": 3}],
        "goodreads_interactions.json": "\n".join(
            json.dumps(row)
            for row in [
                *READS,
                read("a", "11", 6),
                read("", "11"),
                read("a", "11", 5, "yesterday"),
                read("a", "11", 5, "Fri Foo 25 13:55:02 -0700 2017"),
                {"user_id": "a", "book_id": "11", "rating": 5},
            ]
        )
        + "\nnot json\n",
    }
    made = convert("goodreads", files, "--k-core", 1)
    assert len(made.rows("inter")) == 2 and len(made.items("title")) == 2
    assert made.reasons() == [
        ("goodreads_interactions.json", 5, "rating that is not 0 to 5"),
        ("goodreads_interactions.json", 6, "empty id"),
        ("goodreads_interactions.json", 7, "date_added that is not a date"),
        ("goodreads_interactions.json", 8, "date_added that is not a date"),
        ("goodreads_interactions.json", 9, "no date_added"),
        ("goodreads_interactions.json", 10, "not JSON"),
        ("goodreads_books.json", 3, "book without a title"),
        ("goodreads_books.json", 4, "book listed twice"),
        ("goodreads_books.json", 5, "empty id"),
        ("goodreads_books.json", 6, "book without a title"),
    ]


def slow_core(pairs, k):
    """Reference k-core: remove one user or book below k at a time."""
    pairs = set(pairs)
    while True:
        users, books = Counter(u for u, _ in pairs), Counter(b for _, b in pairs)
        offender = next((p for p in sorted(pairs) if users[p[0]] < k or books[p[1]] < k), None)
        if offender is None:
            return pairs
        pairs.remove(offender)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_core_against_its_slow_twin(convert, k, monkeypatch):
    monkeypatch.setattr(stored_rows, "ROWS_PER_CHUNK", 7)  # the rows come in many chunks
    generator = random.Random(0)
    pairs = {(f"u{generator.randrange(12)}", str(generator.randrange(15))) for _ in range(110)}
    files = {
        "goodreads_books.json": [book(str(n), f"Book {n}") for n in range(15)],
        "goodreads_interactions.json": [read(*pair) for pair in sorted(pairs)],
    }
    made = convert("goodreads", files, "--k-core", k)
    left = slow_core(pairs, k)
    assert {(row[0], row[1]) for row in made.rows("inter")} == left
    assert set(made.items("title")) == {b for _, b in left}
    assert (left != pairs) == (k > 1)


def test_a_core_of_nothing(conversion_error):
    files = {"goodreads_books.json": BOOKS, "goodreads_interactions.json": READS}
    message = conversion_error("goodreads", files, "--k-core", 50)
    assert "nothing to convert: 0 interactions and 0 items" in message
    assert "must be at least 1" in conversion_error("goodreads", files, "--k-core", 0)


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("Thu Jan 01 00:00:00 +0000 1970", 0),
        (DATE, 1503694502),  # date -d 'Fri Aug 25 13:55:02 -0700 2017' +%s
        ("Fri Aug 25 22:25:02 +0130 2017", 1503694502),
        ("Fri Aug 25 13:55:02 2017", None),
        ("Fri Aug 25 13:55 -0700 2017", None),
        ("Thu Jan 01 00:00:00 +0100 1970", None),  # before 1970
        ("", None),
    ],
)
def test_dates(date, seconds):
    assert goodreads._unix_time(date) == seconds


def test_memory_does_not_grow_with_the_interactions(tmp_path, monkeypatch):
    """Ten times the rows of the same users and books take as much memory."""
    monkeypatch.setattr(stored_rows, "ROWS_PER_CHUNK", 500)
    peaks = []
    for times in (1, 10):
        raw = tmp_path / f"raw{times}"
        raw.mkdir()
        (raw / "goodreads_books.json").write_text(json.dumps(book("1", "x")) + "\n")
        line = json.dumps(read("u", "1")) + "\n"
        (raw / "goodreads_interactions.json").write_text(line * 2000 * times)
        tracemalloc.start()
        try:
            arguments = ["--input", str(raw), "--output", str(tmp_path / f"out{times}")]
            assert main(["goodreads", *arguments]) == 0
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
