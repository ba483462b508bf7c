"""Converter of any table of interactions, with or without a table of items, by their columns."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from math import nan
from pathlib import Path
from typing import Any

from recbole_multdpo.data.convert.dataset_folder import DatasetFolder, safe_id
from recbole_multdpo.data.convert.item_rows import ItemRow, write_items
from recbole_multdpo.data.convert.property_file import property_file
from recbole_multdpo.data.convert.raw_files import Reject, find_file
from recbole_multdpo.data.convert.stored_rows import StoredRows, add_filter_arguments
from recbole_multdpo.data.convert.tables import Layout, table_rows
from recbole_multdpo.data.times import seconds_of
from recbole_multdpo.errors import DataError

HELP = "any CSV, TSV, JSON lines or Parquet, whose columns are named by options"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Names of files and columns."""
    add = parser.add_argument
    add("--interactions", required=True, metavar="FILE", help="file in --input, one row each")
    add("--user", required=True, metavar="COLUMN", help="ids of users")
    add("--item", required=True, metavar="COLUMN", help="ids of items")
    add("--rating", metavar="COLUMN", help="numbers; needs --positive")
    add(
        "--positive",
        type=float,
        metavar="RATING",
        help="rating from which an interaction is a positive, e.g. 4; 0 where all of them are",
    )
    add("--time", metavar="COLUMN", help="numbers that grow with time, or dates")
    add("--items", metavar="FILE", help="file in --input with items; default: the interactions'")
    add("--item-id", metavar="COLUMN", help="ids in --items (default: that of --item)")
    add("--text", required=True, nargs="+", metavar="COLUMN", help="texts, the titles first")
    add("--year", metavar="COLUMN", help="tells items of the same title apart")
    add("--separator", help="between columns (default: by name and first line of the file)")
    add("--escape", help='character before a " inside of a value (default: it is doubled)')
    add("--header", nargs="+", metavar="COLUMN", help="columns of a file without a header")
    add_filter_arguments(parser, k_core=1)
    add(
        "--prompt-template",
        default="items",
        choices=["items", "books", "movies"],
        help="words of the prompt, for the property file (default: %(default)s)",
    )


def convert(options: argparse.Namespace, folder: DatasetFolder) -> dict[str, Any]:
    """Write the data set's files and return the report."""
    if (options.rating is None) != (options.positive is None):
        raise DataError(
            "--rating needs --positive, and the other way round: the rating from which an "
            "interaction counts as liked, e.g. --positive 4, or 0 where every one does"
        )
    source = find_file(options.input, [options.interactions], need="--interactions")
    items_file = (
        find_file(options.input, [options.items], need="--items") if options.items else None
    )
    separator = options.separator
    separator = separator and separator.encode().decode("unicode_escape")  # `\t`
    layout = Layout(separator, options.header, escape=options.escape)
    rows = StoredRows(folder, options.k_core)
    _store(rows, source, layout, options, folder)
    rows.keep(options.repeats, nan if options.positive is None else options.positive)
    columns = rows.write()
    texts = dict.fromkeys([*options.text, *([options.year] if options.year else [])])
    id_column = options.item_id or options.item
    path = items_file or source
    of_items = layout if items_file is None else Layout(separator, escape=options.escape)
    found = _items(path, [id_column, *texts], of_items, folder.reject, once=items_file is None)
    names = [_name(text) for text in texts]
    catalogue = items_file is not None and options.k_core == 1
    write_items(folder, path, found, names, rows.kept_items(), others=catalogue)
    year = _name(options.year) if options.year else None
    return folder.finish(
        properties=property_file(
            folder,
            f"{rows.numbers['n_users']:,} users, {folder.rows['item']:,} items, "
            f"{rows.numbers['n_inter']:,} interactions, converted from {source.name}",
            columns,
            positive=options.positive if "rating" in columns else None,
            text=names[0],
            year=year,
            template=options.prompt_template,
        ),
        text_field=names[0],
        year_field=year,
        report={
            "sources": [source.name, *([items_file.name] if items_file else [])],
            "options": {
                key: value
                for key, value in vars(options).items()
                if key not in ("input", "output", "format")
            },
        },
    )


def _store(
    rows: StoredRows,
    source: Path,
    layout: Layout,
    options: argparse.Namespace,
    folder: DatasetFolder,
) -> None:
    optional = [name for name in (options.rating, options.time) if name]
    for line, (user, item, *more) in table_rows(
        source, [options.user, options.item, *optional], folder.reject, layout
    ):
        problem, rating, time = None, nan, nan
        if not user.strip() or not item.strip():
            problem = "empty id"
        if options.rating:
            rating, problem = number_of(more[0], "rating", problem)
        if options.time:
            time, problem = time_of(more[-1], problem)
        if problem:
            folder.reject(source.name, line, problem, [user, item, *more])
        else:
            rows.add(safe_id(user), safe_id(item), rating, time)


def number_of(text: str, what: str, problem: str | None = None) -> tuple[float, str | None]:
    """A number, and the problem if it is none or there was one before."""
    try:
        number = float(text)
    except ValueError:
        number = nan
    finite = abs(number) < float("inf")
    return number, problem or (None if finite else f"{what} that is not a number")


def time_of(text: str, problem: str | None = None) -> tuple[float, str | None]:
    """A time as a number, and the problem if it is none or there was one before."""
    found = seconds_of(text)
    if found is None:
        return nan, problem or "time that is neither a number nor an unambiguous date"
    return found[0], problem


def _items(
    path: Path, columns: list[str], layout: Layout, reject: Reject, *, once: bool
) -> Iterator[ItemRow]:
    """Yield the items of a file; `once`: an item's later rows are no repetitions but expected."""
    seen: set[str] = set()
    silent = (lambda *_: None) if once else reject
    for line, (item, *texts) in table_rows(path, columns, silent, layout):
        token = safe_id(item)
        if not once or (token not in seen and texts[0].strip()):
            seen.add(token)
            yield line, token, texts


def _name(column: str) -> str:
    """A name for a column of an atomic file."""
    return "_".join(column.replace(":", " ").replace("|", " ").split())
