"""Converter of UCSD's Steam (Kang and McAuley 2018): Python literals line by line, streamed."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recbole_multdpo.data.convert.dataset_folder import DatasetFolder, safe_id
from recbole_multdpo.data.convert.item_rows import ItemRow, write_items
from recbole_multdpo.data.convert.property_file import property_file
from recbole_multdpo.data.convert.raw_files import Reject, find_file
from recbole_multdpo.data.convert.stored_rows import StoredRows, add_filter_arguments
from recbole_multdpo.data.convert.table import time_of
from recbole_multdpo.data.convert.tables import as_text, literal_rows

HELP = "UCSD's Steam: a folder with steam_reviews.json.gz and steam_games.json.gz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for filtering reviews."""
    add_filter_arguments(parser, k_core=5)


def convert(options: argparse.Namespace, folder: DatasetFolder) -> dict[str, Any]:
    """Write the data set's files and return the report."""
    reviews = find_file(options.input, ["steam_reviews.json", "steam_new.json"], need="reviews")
    games = find_file(options.input, ["steam_games.json"], need="the games' names")
    rows = StoredRows(folder, options.k_core)
    for line, row in literal_rows(reviews, folder.reject):
        user, item = as_text(row.get("username")), as_text(row.get("product_id"))
        problem = None if user.strip() and item.strip() else "no user or no game"
        time, problem = time_of(as_text(row.get("date")), problem)
        if problem:
            folder.reject(reviews.name, line, problem, [user, item, as_text(row.get("date"))])
        else:
            rows.add(safe_id(user), safe_id(item), time=time)
    rows.keep(options.repeats)
    columns = rows.write()
    texts = ["title", "genres", "tags"]
    write_items(folder, games, _games(games, folder.reject), texts, rows.kept_items())
    return folder.finish(
        properties=property_file(
            folder,
            f"Steam, {rows.numbers['n_users']:,} users, {folder.rows['item']:,} games, "
            f"{rows.numbers['n_inter']:,} reviews, {options.k_core}-core",
            columns,
        ),
        text_field="title",
        year_field=None,
        report={
            "sources": [reviews.name, games.name],
            "options": {"k_core": options.k_core, "repeats": options.repeats},
        },
    )


def _games(path: Path, reject: Reject) -> Iterator[ItemRow]:
    for line, row in literal_rows(path, reject):
        name = row.get("app_name") or row.get("title")
        texts = (name, row.get("genres"), row.get("tags"))
        yield line, safe_id(as_text(row.get("id"))), [as_text(text) for text in texts]
