"""Read untrusted CSV files as tables: within limits, with clear errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_multdpo.runtime.reading import MB, check_regular

TABLE_LIMIT = 4096 * MB  # one row per user or step


def read_table(path: Path, columns: Mapping[str, type], **options: Any) -> pd.DataFrame:
    """Read a CSV file with a header.

    Args:
        path: the file.
        columns: required columns with their type, `str` or `float` (numbers or empty).
        options: of `pandas.read_csv`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a regular file, too large, or not a table of UTF-8 text; a column is
            missing, or one of numbers holds something else.
    """
    check_regular(path, TABLE_LIMIT)
    try:
        table = pd.read_csv(path, low_memory=False, **options)
    except (ValueError, OverflowError, RecursionError) as error:  # pandas' own are ValueErrors
        raise ValueError(" ".join(str(error).split()) or "it is not a table") from error
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f"there is no column {missing[0]!r}")
    for name, kind in columns.items():
        if kind is float:
            try:
                table[name] = pd.to_numeric(table[name])
            except (ValueError, TypeError, OverflowError) as error:
                raise ValueError(f"the column {name!r} must hold numbers: {error}") from error
    return table
