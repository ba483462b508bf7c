"""Converter of Amazon Reviews 2014, 2018 and 2023: reviews or ratings, and metadata.

Files are streamed. Those of 2014 are Python literals line by line, which are parsed and not run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recbole_multdpo.data.convert.dataset_folder import DatasetFolder, safe_id
from recbole_multdpo.data.convert.item_rows import ItemRow, write_items
from recbole_multdpo.data.convert.property_file import property_file
from recbole_multdpo.data.convert.raw_files import Reject, byte_lines, find_file
from recbole_multdpo.data.convert.stored_rows import StoredRows, add_filter_arguments
from recbole_multdpo.data.convert.table import number_of, time_of
from recbole_multdpo.data.convert.tables import Layout, as_text, literal_rows, table_rows

HELP = "Amazon Reviews 2014, 2018, 2023: a folder with reviews or ratings, and meta_*.json"

_META = ["meta_*.json", "meta_*.jsonl", "meta.json", "metadata.json"]
_KEYS = {  # of user, item, rating, time
    "2014 or 2018": ("reviewerID", "asin", "overall", "unixReviewTime"),
    "2023": ("user_id", "parent_asin", "rating", "timestamp"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for filtering reviews."""
    parser.add_argument(
        "--min-rating",
        type=float,
        default=0,
        help="least rating of a positive; lower ones stay in the files and are not counted by "
        "--k-core (default: 0, every review is a positive, as in the tables of the literature)",
    )
    add_filter_arguments(parser, k_core=5)


def convert(options: argparse.Namespace, folder: DatasetFolder) -> dict[str, Any]:
    """Write the data set's files and return the report."""
    meta = find_file(options.input, _META, need="the products' titles")
    reviews = _reviews_file(options.input, meta)
    rows = StoredRows(folder, options.k_core)
    edition = _store(rows, reviews, folder)
    rows.keep(options.repeats, options.min_rating)
    columns = rows.write()
    texts = ["title", "brand", "categories"]
    write_items(folder, meta, products(meta, folder.reject), texts, rows.kept_items())
    return folder.finish(
        properties=property_file(
            folder,
            f"Amazon Reviews {edition}, {rows.numbers['n_users']:,} users, "
            f"{folder.rows['item']:,} products, {rows.numbers['n_inter']:,} reviews, "
            f"{options.k_core}-core",
            columns,
            positive=options.min_rating or None,
        ),
        text_field="title",
        year_field=None,
        report={
            "sources": [reviews.name, meta.name],
            "options": {
                "k_core": options.k_core,
                "repeats": options.repeats,
                "min_rating": options.min_rating,
                "edition": edition,
            },
        },
    )


def _reviews_file(folder: Path, meta: Path) -> Path:
    """The only other file with rows."""
    names = [f"*.{end}" for end in ("json", "jsonl", "csv")]
    others = [f"[!m]{name}" for name in names] + [f"m[!e]{name}" for name in names]
    return find_file(folder, others, need="reviews, or a CSV of ratings")


def _store(rows: StoredRows, path: Path, folder: DatasetFolder) -> str:
    """Store the reviews; returns the edition."""
    edition, records = _records(path, folder.reject)
    for line, (user, item, rating_text, time_text) in records:
        problem = None if user.strip() and item.strip() else "no user or no product"
        rating, problem = number_of(rating_text, "rating", problem)
        time, problem = time_of(time_text, problem)
        if problem:
            folder.reject(path.name, line, problem, [user, item, rating_text, time_text])
        else:
            rows.add(safe_id(user), safe_id(item), rating, time)
    return edition


def _records(path: Path, reject: Reject) -> tuple[str, Iterator[tuple[int, list[str]]]]:
    """The edition, and line numbers with user, item, rating and time."""
    first = next((line for _, line in byte_lines(path, progress=False) if line.strip()), b"")
    start = first.decode("utf-8", errors="replace")
    if ".csv" in path.suffixes:
        if "parent_asin" in start:
            return "2023", table_rows(path, _KEYS["2023"], reject)
        values = start.strip().split(",")
        # 2014: user,item,rating,time; 2018: item,user,rating,time, without a header
        is_user = len(values[0]) > len(values[1]) if len(values) > 1 else True
        names = ["user", "item"] if is_user else ["item", "user"]
        layout = Layout(",", [*names, "rating", "time"])
        edition = "2014" if is_user else "2018"
        return edition, table_rows(path, ["user", "item", "rating", "time"], reject, layout)
    edition = "2023" if "parent_asin" in start else "2014 or 2018"
    keys = _KEYS[edition]
    rows = literal_rows(path, reject)
    return edition, ((line, [as_text(row.get(key)) for key in keys]) for line, row in rows)


def products(path: Path, reject: Reject) -> Iterator[ItemRow]:
    """Yield id, title, brand and the most special categories of the products."""
    for line, row in literal_rows(path, reject):
        item = as_text(row.get("parent_asin") or row.get("asin"))
        categories = row.get("categories") or row.get("category") or []
        if categories and isinstance(categories, list) and isinstance(categories[0], list):
            categories = categories[0]  # 2014: several paths in the tree of categories
        title = as_text(row.get("title"))
        if "getTime" in title:  # 2018: code of the page in place of some titles
            title = ""
        texts = (title, row.get("brand") or row.get("store"), categories)
        yield line, safe_id(item), [as_text(text) for text in texts]
