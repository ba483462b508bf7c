"""CSV files that a stage of training appends to."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recbole_multdpo.errors import DataError
from recbole_multdpo.runtime.reading import MB, is_file, read_bytes
from recbole_multdpo.runtime.shown_text import csv_cell

LIMIT = 256 * MB


class CsvLog:
    """Appends rows to a CSV file; a resumed run continues it where `rewind_logs` has cut it."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Open the file, making it where there is none."""
        self.path = path
        if not path.exists():
            path.write_text(",".join(columns) + "\n", encoding="utf-8")

    def append(self, rows: Iterable[Sequence[Any]]) -> None:
        """Write rows, their values in the order of the columns."""
        with self.path.open("a", encoding="utf-8", newline="") as file:
            safe = (map(csv_cell, row) for row in rows)
            csv.writer(file, lineterminator="\n").writerows(safe)


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Whole rows of a CSV file, column to text; none where there is no such file.

    Args:
        path: what a `CsvLog` wrote.
        columns: its columns.

    Raises:
        DataError: it is no such file.
    """
    if not is_file(path):
        return []
    try:
        text = read_bytes(path, LIMIT).decode("utf-8")
        whole_lines = text[: text.rfind("\n") + 1]
        rows = list(csv.DictReader(io.StringIO(whole_lines)))
        if any(row.get(name) is None for row in rows for name in columns):
            raise ValueError(f"a row lacks a column; there must be {', '.join(columns)}")
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}). Remove it.") from error
    return rows
