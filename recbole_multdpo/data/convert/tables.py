"""Rows of tables by the names of their columns: CSV, TSV, JSON, Parquet, plain or gzip.

Also Python literals line by line, as in Amazon's files of 2014, which are parsed and never run.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from recbole_multdpo.data.convert.raw_files import (
    Reject,
    byte_lines,
    csv_rows,
    json_lines,
    json_rows,
    text_encoding,
    text_lines,
)
from recbole_multdpo.errors import DataError

_FIRST_ROWS = 1000
_BATCH = 4096  # rows of a Parquet file read at once
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".item": "\t"}


@dataclass(frozen=True)
class Layout:
    """The form of a table, as far as its file does not tell.

    Attributes:
        separator: between columns; None: found out from the first line.
        header: names of the columns where the first line does not have them.
        quoted: False if quotation marks are ordinary characters.
        escape: character before a quotation mark that is part of a text; None: it is doubled.
        detect: True to read the file as latin-1 where it is not UTF-8.
    """

    separator: str | None = None
    header: Sequence[str] | None = None
    quoted: bool = True
    escape: str | None = None
    detect: bool = False


def table_rows(
    path: Path, columns: Sequence[str], reject: Reject, layout: Layout | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yield line number (in JSON lists and Parquet: number of the row) and values of `columns`.

    Values of JSON and Parquet become text: none is empty, of a list its entries joined by ", ".

    Raises:
        DataError: the file cannot be read, or lacks a column.
    """
    layout = layout or Layout()
    kinds = {end for end in path.suffixes if end != ".gz"}
    if ".parquet" in kinds or path.name.endswith(".pq"):
        for number, row in parquet_rows(path, columns):
            yield number, [as_text(row[name]) for name in columns]
    elif kinds & {".json", ".jsonl", ".ndjson"}:
        seen: set[str] = set()
        for number, row in json_rows(path, reject):
            seen |= row.keys()
            if number == _FIRST_ROWS:  # a mistyped name is found before a large file is read
                _check_columns(path, columns, sorted(seen))
            yield number, [as_text(row.get(name)) for name in columns]
        _check_columns(path, columns, sorted(seen))
    else:
        yield from _delimited_rows(path, columns, reject, layout)


def as_text(value: Any) -> str:
    """A value of JSON, Parquet or a Python literal as text; None and NaN are empty."""
    if value is None or value != value:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(filter(None, map(as_text, value)))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.isoformat() if isinstance(value, date | datetime) else str(value)


def _check_columns(path: Path, columns: Sequence[str], there: Sequence[str]) -> None:
    missing = [name for name in columns if name not in there]
    if missing:
        raise DataError(
            f"{path}, line 1: no column {', '.join(missing)}; it has "
            f"{', '.join(map(str, there)) or 'no header'}"
        )


def parquet_rows(
    path: Path, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield numbers from 1 and rows of a Parquet file; `columns`: None for all.

    Raises:
        DataError: pyarrow is not installed, the file cannot be read, or it lacks a column.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(
            f"{path}: Parquet needs pyarrow. Run: pip install 'recbole-multdpo[arrow]'"
        ) from None
    number = 0
    try:
        file = ParquetFile(path)
        _check_columns(path, columns or (), file.schema_arrow.names)
        names = None if columns is None else list(dict.fromkeys(columns))
        for batch in file.iter_batches(_BATCH, columns=names):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error})") from None


def _delimited_rows(
    path: Path, columns: Sequence[str], reject: Reject, layout: Layout
) -> Iterator[tuple[int, list[str]]]:
    encoding = text_encoding(path) if layout.detect else "utf-8"
    separator = layout.separator or _separator(path)
    if layout.quoted and len(separator) == 1:
        yield from csv_rows(
            path, columns, reject, encoding, separator, layout.header, layout.escape
        )
        return
    names = layout.header
    for number, text in text_lines(path, reject, encoding):
        row = text.split(separator)
        if names is None:
            names = [name.strip().partition(":")[0] for name in row]
            _check_columns(path, columns, names)
        elif len(row) == len(names):
            yield number, [row[names.index(name)] for name in columns]
        else:
            reject(path.name, number, f"{len(row)} columns instead of {len(names)}", text)


def _separator(path: Path) -> str:
    """By the file's name, else whichever of tab, semicolon, bar, comma is first in its head."""
    for end in path.suffixes:
        if end in _SEPARATORS and end != ".csv":
            return _SEPARATORS[end]
    first = next((line for _, line in byte_lines(path, progress=False)), b"")
    text = first.decode("utf-8", errors="replace")
    if "::" in text:
        return "::"
    return max("\t;|,", key=text.count) if any(mark in text for mark in "\t;|,") else ","


def literal_rows(path: Path, reject: Reject) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line numbers and objects of a file of JSON lines or of Python's literals.

    Python's are parsed without running anything: names and calls are rejected.
    """
    first = next((line for _, line in byte_lines(path, progress=False) if line.strip()), b"")
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        pass
    else:
        yield from json_lines(path, reject)
        return
    for number, text in text_lines(path, reject):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            reject(path.name, number, "neither JSON nor a Python literal", text)
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            reject(path.name, number, "not an object", text)


def literal_list(text: str) -> list[Any] | None:
    """The list that a text such as `['a', 'b']` writes, in JSON or Python; None if it is none."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return list(value) if isinstance(value, list | tuple) else None
