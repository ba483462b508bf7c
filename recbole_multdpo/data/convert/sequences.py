"""Converter of sequences: a line per user with the user and the items, oldest first.

P5's and TransRec's `sequential_data.txt`, S3-Rec's `Beauty.txt`, IDGenRec's `user_sequence.txt`.
Titles come from Amazon's metadata, by P5's `datamaps.json` where items are numbers, or from a file
of ids and titles.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recbole_multdpo.data.convert.amazon import products
from recbole_multdpo.data.convert.dataset_folder import DatasetFolder, safe_id
from recbole_multdpo.data.convert.item_rows import ItemRow, write_items
from recbole_multdpo.data.convert.parts import list_rows
from recbole_multdpo.data.convert.property_file import LEAVE_ONE_OUT, property_file
from recbole_multdpo.data.convert.raw_files import (
    Reject,
    find_file,
    find_files,
    read_json,
    text_lines,
)
from recbole_multdpo.data.convert.stored_rows import StoredRows
from recbole_multdpo.errors import DataError

HELP = "a line per user, `user item item ...`, such as P5's and S3-Rec's; with titles"

_SEQUENCES = ["sequential_data.txt", "user_sequence.txt", "sequences.txt"]
_META = ["meta.json", "meta_*.json", "meta_*.jsonl"]
_TITLES = ["id2title.json", "id2name.json", "title_maps.json"]
_TITLE_LINES = ["item_plain_text.txt", "id2name.txt"]
_PICKLE_HELP = (
    "title_maps.npy is a pickle, which can run any code, so it is not read. If you trust it, "
    'convert it to JSON yourself: python -c "import json, numpy; maps = '
    "numpy.load('title_maps.npy', allow_pickle=True).item(); json.dump({str(key): title for key, "
    "title in maps['id2title'].items()}, open('id2title.json', 'w'))\" (the map's name may differ)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The name of the file."""
    parser.add_argument(
        "--sequences",
        metavar="FILE",
        help=f"file in --input with the sequences (default: {', '.join(_SEQUENCES)})",
    )


def convert(options: argparse.Namespace, folder: DatasetFolder) -> dict[str, Any]:
    """Write the data set's files and return the report."""
    names = [options.sequences] if options.sequences else _SEQUENCES
    source = find_file(options.input, names, need="a line per user; --sequences names the file")
    rows = StoredRows(folder)
    known: set[str] = set()
    for line, user, items in list_rows(source, folder.reject):
        if not items or user in known:
            folder.reject(source.name, line, "user twice" if items else "user without items", user)
            continue
        known.add(user)
        for place, item in enumerate(items):
            rows.add(user, item, time=place)
    rows.keep()
    columns = rows.write()
    titles, found = _titles(options.input, folder.reject)
    write_items(folder, titles, found, ["title"], rows.kept_items())
    return folder.finish(
        properties=property_file(
            folder,
            f"{rows.numbers['n_users']:,} users, {folder.rows['item']:,} items, converted from "
            f"{source.name}; timestamp is the place in the user's list",
            columns,
            split=LEAVE_ONE_OUT,
        ),
        text_field="title",
        year_field=None,
        report={"sources": [source.name, titles.name]},
    )


def _titles(folder: Path, reject: Reject) -> tuple[Path, Iterator[ItemRow]]:
    """The file with titles, and its items by the ids of the sequences."""
    if found := find_files(folder, _TITLES):
        return found[0], _named(read_json(found[0], dict))
    if found := find_files(folder, _TITLE_LINES):
        return found[0], _lines(found[0], reject)
    if found := find_files(folder, _META):
        maps = find_files(folder, ["datamaps.json"])
        numbers = read_json(maps[0], dict).get("item2id", {}) if maps else None
        return found[0], _renamed(products(found[0], reject), numbers)
    if find_files(folder, ["title_maps.npy"]):
        raise DataError(f"{folder} has no titles that can be read. {_PICKLE_HELP}")
    raise DataError(
        f"{folder} has no titles: put {', '.join(_TITLES)} (id -> title) there, or "
        "item_plain_text.txt (id, space, title), or Amazon's meta_*.json.gz with P5's datamaps.json"
    )


def _named(titles: dict[str, Any]) -> Iterator[ItemRow]:
    nested = titles.get("id2title") or titles.get("id2name")
    pairs = nested if isinstance(nested, dict) else titles
    for number, (item, title) in enumerate(pairs.items(), start=1):
        yield number, safe_id(item), [title if isinstance(title, str) else ""]


def _lines(path: Path, reject: Reject) -> Iterator[ItemRow]:
    for line, text in text_lines(path, reject):
        mark = "::" if "::" in text.split(" ", 1)[0] else None
        item, *title = text.split(mark, 1)
        yield line, safe_id(item), ["".join(title)]


def _renamed(rows: Iterator[ItemRow], numbers: dict[str, Any] | None) -> Iterator[ItemRow]:
    for line, item, texts in rows:
        if numbers is None or item in numbers:
            yield line, item if numbers is None else safe_id(str(numbers[item])), texts[:1]
