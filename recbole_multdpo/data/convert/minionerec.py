"""Converter of MiniOneRec's and D3's CSV: a row for each item that a user chose, with the history.

The rows of one user are windows of one list. The parts come as folders `train`, `valid`, `test`
with a CSV each, or as files whose names have these words; the info file has the titles.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recbole_multdpo.data.convert.dataset_folder import DatasetFolder, safe_id
from recbole_multdpo.data.convert.item_rows import ItemRow, write_items
from recbole_multdpo.data.convert.parts import Pair, benchmark, write_parts
from recbole_multdpo.data.convert.property_file import property_file
from recbole_multdpo.data.convert.raw_files import byte_lines, find_files, text_lines
from recbole_multdpo.data.convert.splits import SPLITS
from recbole_multdpo.data.convert.tables import literal_list, table_rows
from recbole_multdpo.errors import DataError

HELP = "MiniOneRec's and D3's CSV (user_id, history_item_id, item_id) with their info file"

_COLUMNS = ["user_id", "history_item_id", "item_id"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options: this format has none."""


def convert(options: argparse.Namespace, folder: DatasetFolder) -> dict[str, Any]:
    """Write the data set's files and return the report."""
    files = _files(options.input)
    titles: dict[str, str] = {}
    pairs = _pairs(files, titles, folder)
    n_users, wanted = write_parts(folder, pairs, with_places=True)
    infos = find_files(options.input, ["info/*.txt", "*info*.txt", "*.txt"])
    rows = _items(infos[0], folder) if infos else []
    known = {item for _, item, _ in rows}
    rows += [(0, item, [title]) for item, title in titles.items() if item not in known]
    path = infos[0] if infos else files["train"]
    write_items(folder, path, rows, ["title"], wanted, others=True)
    return folder.finish(
        properties=property_file(
            folder,
            f"{n_users:,} users, {folder.rows['item']:,} items, converted from "
            f"{files['train'].name}; timestamp is the place in the user's list",
            ["user_id", "item_id", "timestamp"],
            split=benchmark(pairs),
        ),
        text_field="title",
        year_field=None,
        report={"sources": [path.name for path in (*files.values(), *infos[:1])]},
    )


def _files(folder: Path) -> dict[str, Path]:
    """The CSV file of each part."""
    files = {}
    for part in SPLITS:
        found = find_files(folder, [f"{part}/*.csv", f"{part}.csv", f"*[-_]{part}.csv"])
        if len(found) > 1:
            names = ", ".join(str(path.relative_to(folder)) for path in found)
            raise DataError(f"{folder} has several {part} files ({names}); keep one of them")
        if found:
            files[part] = found[0]
    if not {"train", "test"} <= files.keys():
        raise DataError(
            f"{folder} has no train and test part: expected train/*.csv and test/*.csv (and "
            "valid/*.csv), or train.csv and test.csv"
        )
    return files


def _pairs(
    files: Mapping[str, Path], titles: dict[str, str], folder: DatasetFolder
) -> dict[str, list[Pair]]:
    """Users and items of each part; `titles` gets those of the rows.

    Targets of validation and test rows are their parts. All other items, those of histories too,
    are for training.
    """
    lists: dict[str, dict[str, str]] = {}  # part of each item of each user, oldest first
    for part, path in files.items():
        for user, history, target in _rows(path, titles, folder):
            of_user = lists.setdefault(user, {})
            for item in history:
                of_user.setdefault(item, "train")
            if target not in of_user or part != "train":
                of_user.pop(target, None)  # chosen again: the later place counts
                of_user[target] = part
    pairs: dict[str, list[Pair]] = {part: [] for part in files}
    for user, of_user in lists.items():
        for place, (item, part) in enumerate(of_user.items()):
            pairs[part].append((user, item, str(place)))
    return pairs


def _rows(
    path: Path, titles: dict[str, str], folder: DatasetFolder
) -> Iterator[tuple[str, list[str], str]]:
    """Yield user, history and target of each row."""
    header = next((line for _, line in byte_lines(path, progress=False)), b"").decode(
        "utf-8", "replace"
    )
    named = [c for c in ("history_item_title", "item_title") if c in header.split(",")]
    named = named if len(named) == 2 else []
    for line, row in table_rows(path, [*_COLUMNS, *named], folder.reject):
        user, history, target = safe_id(row[0]), literal_list(row[1]), safe_id(row[2])
        if not user or not target or history is None:
            folder.reject(path.name, line, "no user, no item, or a history that is no list", row)
            continue
        items = [safe_id(str(item)) for item in history]
        if named:
            titles.setdefault(target, row[4])
            texts = literal_list(row[3]) or []
            if len(texts) == len(items):
                for item, text in zip(items, map(str, texts), strict=True):
                    titles.setdefault(item, text)
        yield user, items, target


def _items(path: Path, folder: DatasetFolder) -> list[ItemRow]:
    """Items of an info file: lines `title, id` (D3) or `semantic id, title, id`, by tabs."""
    rows: list[ItemRow] = []
    for line, text in text_lines(path, folder.reject):
        fields = text.split("\t")
        if len(fields) < 2 or not fields[-1].strip():
            folder.reject(path.name, line, "no title and id, separated by a tab", text)
        else:
            rows.append((line, safe_id(fields[-1]), [fields[-2]]))
    return rows
