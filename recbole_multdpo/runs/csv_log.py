"""CSV files that training appends to."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recbole_multdpo.runtime.reading import MB, is_file, read_bytes, readable
from recbole_multdpo.runtime.shown_text import csv_cell

LIMIT = 256 * MB


class CsvLog:
    """Appends rows to a CSV file; a resumed run continues the file that `rewind_logs` truncated.

    A file of an older version keeps its columns: newer ones, which come last, are left out.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Open the file; a new one gets its header.

        Args:
            path: the file.
            columns: names without commas.
        """
        self.path = path
        if not path.exists() or path.stat().st_size == 0:
            path.write_text(",".join(columns) + "\n", encoding="utf-8")
        with path.open("rb") as file:
            self._n_columns = file.readline(10_000).count(b",") + 1

    def append(self, rows: Iterable[Sequence[Any]]) -> None:
        """Write rows of values in the order of the columns."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            safe = (map(csv_cell, row[: self._n_columns]) for row in rows)
            csv.writer(file, lineterminator="\n").writerows(safe)


def copy_log(source: Path, target: Path, columns: Sequence[str]) -> None:
    """Copy a log; columns that an older version did not write are empty.

    Args:
        source: file of a `CsvLog`.
        target: the new file.
        columns: names of all columns of this version.
    """
    text, header = source.read_text(encoding="utf-8", errors="surrogateescape"), ",".join(columns)
    old_header, _, rows = text.partition("\n")
    if header.startswith(f"{old_header},"):
        empty = "," * header.count(",", len(old_header))
        text = f"{header}\n" + rows.replace("\n", f"{empty}\n")
    target.write_text(text, encoding="utf-8", errors="surrogateescape")


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Complete rows of a CSV file, column to text; [] if the file does not exist.

    Args:
        path: file of a `CsvLog`.
        columns: names that every row must have.

    Raises:
        DataError: the file cannot be read, or a row lacks a column.
    """
    if not is_file(path):
        return []
    with readable(path, "Remove it.", also=(csv.Error,)):
        text = read_bytes(path, LIMIT).decode("utf-8")
        whole_lines = text[: text.rfind("\n") + 1]
        rows = list(csv.DictReader(io.StringIO(whole_lines)))
        if any(row.get(name) is None for row in rows for name in columns):
            raise ValueError(f"a row lacks a column; there must be {', '.join(columns)}")
    return rows
