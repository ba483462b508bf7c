"""Converter of GroupLens' MovieLens: `u.data` and `u.item`, or `.dat` (1M, 10M), or `.csv`.

Kaggle's copy of 20M has `rating.csv` and `movie.csv`, with dates instead of Unix times.

Movie files are UTF-8 or, in older sets, latin-1, which is detected. A title's year becomes a
separate column, as in RecBole's own files.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recbole_multdpo.data.convert.dataset_folder import DatasetFolder, id_problem, text_field
from recbole_multdpo.data.convert.raw_files import (
    Reject,
    csv_rows,
    find_file,
    text_encoding,
    text_lines,
    title_and_year,
)
from recbole_multdpo.data.times import seconds_of

HELP = "MovieLens: a folder with ratings.dat/.csv and movies.dat/.csv, or with u.data and u.item"

_NO_GENRES = "(no genres listed)"
_RATING = re.compile(r"[0-5](\.[05]0*)?")
_TIME = re.compile(r"\d{1,12}")
# genres in the order of the last 19 columns of u.item (u.genre)
_GENRES = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir"
    "|Horror|Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western"
).split("|")

PROPERTIES = """\
# {name}, converted from MovieLens: {n_users:,} users, {n_items:,} movies, {n_inter:,} ratings.
load_col:                        # columns loaded per atomic file
  inter: [user_id, item_id, rating, timestamp]
  item: [item_id]                # the catalogue is every movie of the .item file
val_interval: {{rating: "[4,inf)"}}   # ratings kept: those of at least 4 are the positives
normalize_all: False             # ratings stay in stars

item_text_fields: [movie_title]  # an item's text
item_year_field: release_year    # disambiguates movies of the same title
prompt_template: movies
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options: this format has none."""


def convert(options: argparse.Namespace, folder: DatasetFolder) -> dict[str, Any]:
    """Write the data set's files and return the report."""
    names = {
        "ratings": ["ratings.dat", "ratings.csv", "rating.csv", "u.data"],
        "movies": ["movies.dat", "movies.csv", "movie.csv", "u.item"],
    }
    files = {
        kind: find_file(options.input, patterns, need=f"the {kind} of MovieLens")
        for kind, patterns in names.items()
    }
    encoding = text_encoding(files["movies"])
    movies = _write_movies(folder, files["movies"], encoding)
    users = _write_ratings(folder, files["ratings"], movies)
    folder.counts |= {"users": len(users), "encoding_of_movies": options.encoding or encoding}
    rows = folder.rows
    return folder.finish(
        properties=PROPERTIES.format(
            name=folder.name, n_users=len(users), n_items=rows["item"], n_inter=rows["inter"]
        ),
        text_field="movie_title",
        year_field="release_year",
        report={"sources": [path.name for path in files.values()]},
    )


def _write_movies(folder: DatasetFolder, path: Path, encoding: str) -> set[str]:
    """Write the `.item` file and return its ids."""
    table = folder.table(
        "item",
        ["item_id:token", "movie_title:token_seq", "release_year:token", "genre:token_seq"],
    )
    known: set[str] = set()
    for line, (movie, full_title, genres) in _movie_rows(path, encoding, folder.reject):
        problem = "movie listed twice" if movie in known else id_problem(movie)
        title, year = title_and_year(folder.decoded(full_title))
        if problem or not title:
            row = [movie, full_title, genres]
            folder.reject(path.name, line, problem or "movie without a title", row)
            continue
        known.add(movie)
        genres = "" if genres == _NO_GENRES else genres.replace("|", " ")
        table.write(movie, text_field(title), text_field(year), text_field(genres))
    return known


def _movie_rows(
    path: Path, encoding: str, reject: Reject
) -> Iterator[tuple[int, tuple[str, str, str]]]:
    if ".csv" in path.suffixes:
        for number, (movie, title, genres) in csv_rows(
            path, ["movieId", "title", "genres"], reject, encoding
        ):
            yield number, (movie, title, genres)
        return
    if ".item" in path.suffixes:
        for number, text in text_lines(path, reject, encoding):
            fields = text.split("|")
            marks = fields[-len(_GENRES) :]
            if len(fields) < 5 + len(_GENRES) or not set(marks) <= {"0", "1"}:
                reject(path.name, number, "not a row of u.item", text)
                continue
            named = [genre for genre, mark in zip(_GENRES, marks, strict=True) if mark == "1"]
            # a title may contain the separator; two dates and an address follow it
            yield number, (fields[0], "|".join(fields[1 : -len(_GENRES) - 3]), "|".join(named))
        return
    for number, text in text_lines(path, reject, encoding):
        # a title may contain the separator, id and genres do not
        movie, _, rest = text.partition("::")
        title, separator, genres = rest.rpartition("::")
        if separator:
            yield number, (movie, title, genres)
        else:
            reject(path.name, number, "fewer than three columns", text)


def _write_ratings(folder: DatasetFolder, path: Path, movies: set[str]) -> set[str]:
    """Write the `.inter` file and return its users."""
    table = folder.table(
        "inter", ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    )
    users: set[str] = set()
    for line, row in _rating_rows(path, folder.reject):
        if len(row) == 4 and not _TIME.fullmatch(row[3]) and (time := seconds_of(row[3])):
            row[3] = f"{time[0]:.0f}"  # a date
        problem = _rating_problem(row, movies)
        if problem:
            folder.reject(path.name, line, problem, row)
            continue
        users.add(row[0])
        table.write(*row)
    return users


def _rating_rows(path: Path, reject: Reject) -> Iterator[tuple[int, list[str]]]:
    if ".csv" in path.suffixes:
        yield from csv_rows(path, ["userId", "movieId", "rating", "timestamp"], reject)
        return
    separator = "\t" if ".data" in path.suffixes else "::"
    for number, text in text_lines(path, reject):
        yield number, text.split(separator)


def _rating_problem(row: list[str], movies: set[str]) -> str | None:
    if len(row) != 4:
        return f"{len(row)} columns instead of 4"
    user, movie, rating, time = row
    if not _RATING.fullmatch(rating) or float(rating) > 5:
        return "rating that is not between 0 and 5 in half stars"
    if not _TIME.fullmatch(time):
        return "timestamp that is neither a Unix time nor a date"
    if movie not in movies:
        return "rating of a movie that the movie file lacks"
    return id_problem(user)
