"""Converter of MIND (Wu et al. 2020): `behaviors.tsv` and `news.tsv`, of one part or of several.

Clicks are interactions. Those before the log, the column History, have an order and no times: they
get the seconds before the user's first impression.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from recbole_multdpo.data.convert.dataset_folder import DatasetFolder, safe_id
from recbole_multdpo.data.convert.item_rows import ItemRow, write_items
from recbole_multdpo.data.convert.property_file import property_file
from recbole_multdpo.data.convert.raw_files import Reject, find_file
from recbole_multdpo.data.convert.stored_rows import StoredRows, add_filter_arguments
from recbole_multdpo.data.convert.tables import Layout, table_rows

HELP = "MIND: a folder with behaviors.tsv and news.tsv, or with such folders (MINDsmall_train, ...)"

_BEHAVIORS = Layout("\t", ["impression", "user", "time", "history", "shown"], quoted=False)
_NEWS = Layout(
    "\t",
    ["id", "category", "subcategory", "title", "abstract", "url", "entities", "abstract_entities"],
    quoted=False,
)
_TIME = "%m/%d/%Y %I:%M:%S %p"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for filtering clicks."""
    parser.add_argument(
        "--no-history", action="store_true", help="leave out clicks from before the log"
    )
    add_filter_arguments(parser, k_core=1)


def convert(options: argparse.Namespace, folder: DatasetFolder) -> dict[str, Any]:
    """Write the data set's files and return the report."""
    parts = [path.parent for path in sorted(options.input.glob("*/behaviors.tsv*"))]
    parts = parts or [options.input]
    rows = StoredRows(folder, options.k_core)
    logs = [find_file(part, ["behaviors.tsv"], need="clicks") for part in parts]
    begins: dict[str, float] = {}  # time of each user's first impression
    for path in logs:
        for _, user, time, _, _ in _impressions(path, lambda *_: None):
            begins[user] = min(time, begins.get(user, time))
    for path in logs:
        for _, user, time, history, clicks in _impressions(path, folder.reject):
            begin = begins.pop(user, None)
            if begin is not None and not options.no_history:
                for place, item in enumerate(history):
                    rows.add(user, item, time=begin - len(history) + place)
            for item in clicks:
                rows.add(user, item, time=time)
    rows.keep(options.repeats)
    columns = rows.write()
    news = [find_file(part, ["news.tsv"], need="the titles") for part in parts]
    found = (row for path in news for row in _news(path, folder.reject))
    texts = ["title", "category", "subcategory", "abstract"]
    write_items(folder, news[0], found, texts, rows.kept_items(), others=options.k_core == 1)
    return folder.finish(
        properties=property_file(
            folder,
            f"MIND, {rows.numbers['n_users']:,} users, {folder.rows['item']:,} news, "
            f"{rows.numbers['n_inter']:,} clicks",
            columns,
        ),
        text_field="title",
        year_field=None,
        report={
            "sources": [str(path.relative_to(options.input)) for path in news],
            "options": {"k_core": options.k_core, "history": not options.no_history},
        },
    )


def _impressions(
    path: Path, reject: Reject
) -> Iterator[tuple[int, str, float, list[str], list[str]]]:
    """Yield line, user, time, the news clicked before the log, and those clicked now."""
    columns = ["user", "time", "history", "shown"]
    for line, row in table_rows(path, columns, reject, _BEHAVIORS):
        user, (time_text, history, shown) = safe_id(row[0]), row[1:]
        try:
            time = datetime.strptime(time_text.strip(), _TIME).replace(tzinfo=timezone.utc)
        except ValueError:
            reject(path.name, line, "time that is not like 11/15/2019 10:22:32 AM", row)
            continue
        if not user:
            reject(path.name, line, "empty id", row)
            continue
        clicks = [entry[:-2] for entry in shown.split() if entry.endswith("-1")]
        before, now = ([*map(safe_id, items)] for items in (history.split(), clicks))
        yield line, user, time.timestamp(), before, now


def _news(path: Path, reject: Reject) -> Iterator[ItemRow]:
    columns = ["id", "title", "category", "subcategory", "abstract"]
    for line, (item, *texts) in table_rows(path, columns, reject, _NEWS):
        yield line, safe_id(item), texts
