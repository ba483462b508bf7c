"""Converter of UCSD's Goodreads (Wan and McAuley 2018): 229 million interactions, or one genre.

Rows are streamed (`stored_rows`). Memory grows with the number of users and books, not of rows.
"""

from __future__ import annotations

import argparse
import calendar
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from recbole_multdpo.data.convert.dataset_folder import DatasetFolder, id_problem, text_field
from recbole_multdpo.data.convert.raw_files import Reject, csv_rows, find_file, json_lines
from recbole_multdpo.data.convert.stored_rows import StoredRows
from recbole_multdpo.errors import DataError

HELP = "UCSD's Goodreads: a folder with goodreads_interactions* and goodreads_books*.json"

_MONTHS = {name: number for number, name in enumerate(calendar.month_abbr) if name}

PROPERTIES = """\
# {name}, converted from UCSD's Goodreads: {n_users:,} users, {n_items:,} books, {n_inter:,}
# interactions (ratings of {min_rating} or more; users and books with {k_core} or more).{genres}
load_col:                        # columns loaded per atomic file
  inter: [user_id, item_id, rating{timestamp}]
  item: [item_id]                # the catalogue is every book of the .item file
val_interval: {{rating: "[{positive},inf)"}}   # ratings kept, as positives
normalize_all: False             # ratings stay in stars

item_text_fields: [title]        # an item's text
item_year_field: publication_year   # disambiguates books of the same title
prompt_template: books
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for filtering interactions."""
    parser.add_argument(
        "--min-rating",
        type=int,
        default=4,
        choices=range(6),
        help="least rating kept, 0 for unrated books on a shelf too (default: 4, the positives)",
    )
    parser.add_argument(
        "--k-core",
        type=int,
        default=5,
        metavar="K",
        help="k-core: keep users and books with at least K kept interactions, repeated until "
        "nothing changes; 1 keeps all (default: 5)",
    )
    parser.add_argument(
        "--genres",
        nargs="+",
        default=[],
        metavar="GENRE",
        help='keep books of these genres, e.g. poetry "comics, graphic"; needs '
        "goodreads_book_genres_initial.json in the input folder",
    )


def convert(options: argparse.Namespace, folder: DatasetFolder) -> dict[str, Any]:
    """Write the data set's files and return the report."""
    interactions = find_file(
        options.input,
        ["goodreads_interactions*.json", "goodreads_interactions*.csv"],
        need="who read what; all of Goodreads or one genre's subset",
    )
    books_file = find_file(options.input, ["goodreads_books*.json"], need="the books' titles")
    wanted = _books_of_genres(options.input, options.genres, folder.reject)
    rows = StoredRows(folder, options.k_core, _books_with_title(books_file, wanted))
    books = rows.items
    names = _csv_book_ids(options.input, books) if ".csv" in interactions.suffixes else None
    _store_rows(interactions, rows, names, options.min_rating, folder)
    rows.keep()
    has_time = names is None
    rows.write(["rating", "timestamp"] if has_time else ["rating"])
    _write_books(folder, books_file, books, rows.item_kept)
    folder.counts["books_with_a_title"] = len(books)
    return folder.finish(
        properties=PROPERTIES.format(
            name=folder.name,
            n_users=folder.counts["users"],
            n_items=folder.rows["item"],
            n_inter=folder.rows["inter"],
            min_rating=options.min_rating,
            k_core=options.k_core,
            positive=max(options.min_rating, 4),
            genres=f"\n# Genres: {', '.join(options.genres)}." if options.genres else "",
            timestamp=", timestamp" if has_time else "",
        ),
        text_field="title",
        year_field="publication_year",
        report={
            "sources": [interactions.name, books_file.name],
            "options": {
                "min_rating": options.min_rating,
                "k_core": options.k_core,
                "genres": options.genres,
            },
        },
    )


def _books_of_genres(folder: Path, genres: list[str], reject: Reject) -> set[str] | None:
    """Ids of the books of any of these genres; None without genres.

    Raises:
        DataError: no book has one of the genres.
    """
    if not genres:
        return None
    path = find_file(folder, ["goodreads_book_genres_initial.json"], need="--genres needs it")
    wanted = set(genres)
    books: set[str] = set()
    seen: set[str] = set()
    for _, row in json_lines(path, reject):
        its_genres = row.get("genres")
        if isinstance(its_genres, dict):
            seen.update(its_genres)
            if wanted & its_genres.keys():
                books.add(str(row.get("book_id")))
    if wanted - seen:
        raise DataError(
            f"--genres: no book has {', '.join(sorted(wanted - seen))}; there are "
            f"{'; '.join(sorted(seen))}"
        )
    return books


def _books_with_title(path: Path, wanted: set[str] | None) -> dict[str, int]:
    """Map the ids of wanted books with a title to numbers from 0.

    `_write_books`, which reads the file again, reports the rejected rows.
    """
    books: dict[str, int] = {}
    for _, row in json_lines(path, lambda *_: None):
        book = str(row.get("book_id", ""))
        if _book_problem(book, row) is None and (wanted is None or book in wanted):
            books.setdefault(book, len(books))
    return books


def _book_problem(book: str, row: dict[str, Any]) -> str | None:
    title = row.get("title")
    if not isinstance(title, str) or not title.strip():
        return "book without a title"
    return id_problem(book)


def _csv_book_ids(folder: Path, books: dict[str, int]) -> dict[str, str]:
    """Map the ids of books in `goodreads_interactions.csv`, a separate numbering, to the others."""
    path = find_file(folder, ["book_id_map.csv"], need="the ids in the interactions' CSV")
    rows = csv_rows(path, ["book_id_csv", "book_id"], lambda *_: None)
    return {csv_id: book for _, (csv_id, book) in rows if book in books}


def _store_rows(
    source: Path,
    rows: StoredRows,
    names: dict[str, str] | None,
    min_rating: int,
    folder: DatasetFolder,
) -> None:
    """Store the interactions with a wanted book; `names`: the ids of books in a CSV file."""
    counts = {"read": 0, "below_min_rating": 0, "without_a_wanted_book": 0}
    known = rows.items if names is None else names
    for line, (user, book, rating_text, date) in _interaction_rows(source, folder.reject):
        counts["read"] += 1
        rating = int(rating_text) if rating_text in ("0", "1", "2", "3", "4", "5") else None
        time = _unix_time(date) if date else 0
        problem = id_problem(user)
        if rating is None:
            problem = "rating that is not 0 to 5"
        elif time is None:
            problem = "date_added that is not a date"
        if problem or rating is None or time is None:
            row = [user, book, rating_text, date]
            folder.reject(source.name, line, problem or "malformed", row)
        elif rating < min_rating:
            counts["below_min_rating"] += 1
        elif book not in known:
            counts["without_a_wanted_book"] += 1
        else:
            rows.add(user, book if names is None else names[book], rating, time)
    folder.counts["interactions"] = counts


def _interaction_rows(
    path: Path, reject: Reject
) -> Iterator[tuple[int, tuple[str, str, str, str]]]:
    """Yield (line, (user, book, rating, date)) of either format; CSV has no date: an empty text."""
    if ".csv" in path.suffixes:
        for number, (user, book, rating) in csv_rows(
            path, ["user_id", "book_id", "rating"], reject
        ):
            yield number, (user, book, rating, "")
        return
    for number, row in json_lines(path, reject):
        fields = (row.get(key, "") for key in ("user_id", "book_id", "rating", "date_added"))
        user, book, rating, date = map(str, fields)
        if not date:
            reject(path.name, number, "no date_added", row)
            continue
        yield number, (user, book, rating, date)


def _unix_time(date: str) -> int | None:
    """Unix time of a date such as "Fri Aug 25 13:55:02 -0700 2017"; None if it is malformed.

    Not by `strptime`, which depends on the locale and takes an hour for the full data set.
    """
    parts = date.split()
    try:
        _, month, day, clock, zone, year = parts
        hour, minute, second = map(int, clock.split(":"))
        offset = int(zone[1:3]) * 3600 + int(zone[3:5]) * 60
        moment = (int(year), _MONTHS[month], int(day), hour, minute, second)
        seconds = calendar.timegm((*moment, 0, 0, 0)) - (offset if zone[0] == "+" else -offset)
    except (ValueError, KeyError, IndexError):
        return None
    return seconds if 0 <= seconds < 2**31 else None


def _write_books(
    folder: DatasetFolder, path: Path, books: dict[str, int], alive: np.ndarray
) -> None:
    table = folder.table("item", ["item_id:token", "title:token_seq", "publication_year:token"])
    written = np.zeros(len(books), dtype=bool)
    for line, row in json_lines(path, folder.reject):
        book = str(row.get("book_id", ""))
        problem = _book_problem(book, row)
        number = books.get(book)
        if problem is None and number is not None and written[number]:
            problem = "book listed twice"
        if problem:
            folder.reject(path.name, line, problem, {"book_id": book, "title": row.get("title")})
        elif number is not None and alive[number]:
            written[number] = True
            year = str(row.get("publication_year") or "")
            table.write(book, text_field(folder.decoded(row["title"])), text_field(year))
