"""Converter of atomic files that lie packed or come from elsewhere; columns stay as they are."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recbole_multdpo.data.convert.dataset_folder import DatasetFolder, safe_id, text_field
from recbole_multdpo.data.convert.parts import benchmark
from recbole_multdpo.data.convert.property_file import LEAVE_ONE_OUT, property_file
from recbole_multdpo.data.convert.raw_files import byte_lines, find_file, find_files
from recbole_multdpo.data.convert.splits import SPLITS
from recbole_multdpo.errors import DataError

HELP = "RecBole's atomic files, plain or packed: *.inter, or *.train.inter and so on, and *.item"

_TEXTS = ("title", "movie_title", "movie_name", "name", "item_name", "app_name", "book_title")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for the property file."""
    parser.add_argument("--text", metavar="COLUMN", help=f"titles (default: {' or '.join(_TEXTS)})")
    parser.add_argument(
        "--positive", type=float, metavar="RATING", help="least rating of a positive (default: all)"
    )
    parser.add_argument(
        "--leave-one-out",
        action="store_true",
        help="of each user the last item is for test, the one before it for validation",
    )


def convert(options: argparse.Namespace, folder: DatasetFolder) -> dict[str, Any]:
    """Write the data set's files and return the report."""
    items = find_file(options.input, ["*.item"], need="the items' texts")
    parts = {part: find_files(options.input, [f"*.{part}.inter"]) for part in SPLITS}
    files = {f"{part}.inter": found[0] for part, found in parts.items() if len(found) == 1}
    if not files:
        files = {"inter": find_file(options.input, ["*.inter"], need="interactions")}
    columns: list[str] = []
    users: set[str] = set()
    for suffix, path in files.items():
        columns, ids = _copy(folder, path, suffix)
        users |= ids
    texts, _ = _copy(folder, items, "item")
    text = options.text or next((name for name in _TEXTS if name in texts), None)
    if text not in texts:
        raise DataError(
            f"{items}, line 1: no column {text or ' or '.join(_TEXTS)}; it has {', '.join(texts)}. "
            "Name the titles by --text"
        )
    split = LEAVE_ONE_OUT if options.leave_one_out else ""
    if "inter" not in files:
        split = benchmark(suffix.split(".")[0] for suffix in files)
    kept = [name for name in ("user_id", "item_id", "rating", "timestamp") if name in columns]
    folder.counts["users"] = len(users)
    return folder.finish(
        properties=property_file(
            folder,
            f"{len(users):,} users, {folder.rows['item']:,} items, from {items.name}",
            kept,
            positive=options.positive,
            split=split,
            text=str(text),
        ),
        text_field=str(text),
        year_field=None,
        report={"sources": [path.name for path in (*files.values(), items)]},
    )


def _copy(folder: DatasetFolder, path: Path, suffix: str) -> tuple[list[str], set[str]]:
    """Copy a file row by row; returns its columns and the values of the first one."""
    rows = _rows(path, folder)
    line, header = next(rows, (1, [""]))
    if not all(":" in name for name in header):
        raise DataError(
            f"{path}, line 1: {header[0]!r} is no column of an atomic file, such as item_id:token. "
            "Of other tables, name the columns: python -m recbole_multdpo.data.convert table --help"
        )
    names = [name.partition(":")[0] for name in header]
    needed = ["item_id"] if suffix == "item" else ["user_id", "item_id"]
    if missing := [name for name in needed if name not in names]:
        raise DataError(
            f"{path}, line 1: no column {', '.join(missing)}; it has {', '.join(names)}"
        )
    table, first, seen = folder.table(suffix, header), names.index(needed[0]), set[str]()
    for line, row in rows:
        ids = {names.index(name) for name in needed}
        row = [safe_id(value) if at in ids else text_field(value) for at, value in enumerate(row)]
        if any(not row[at] for at in ids):
            folder.reject(path.name, line, "empty id", row)
        elif suffix == "item" and row[first] in seen:
            folder.reject(path.name, line, "item listed twice", row)
        else:
            seen.add(row[first])
            table.write(*row)
    return names, seen


def _rows(path: Path, folder: DatasetFolder) -> Iterator[tuple[int, list[str]]]:
    """Yield lines and fields, the header first; rows of another width are rejected."""
    width = 0
    for line, raw in byte_lines(path):
        try:
            row = raw.decode("utf-8").rstrip("\r\n").split("\t")
        except UnicodeDecodeError:
            raise DataError(
                f"{path}, line {line}: not utf-8. Set --encoding, e.g. latin-1"
            ) from None
        width = width or len(row)
        if len(row) == width:
            yield line, row
        elif any(row):
            reason = f"{len(row)} columns instead of {width}"
            folder.reject(path.name, line, reason, row)
