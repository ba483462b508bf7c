"""The file `bounds.csv` of a run: both losses and their bounds for every context of every step."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from recbole_multdpo.losses import Bounds
from recbole_multdpo.runs.csv_log import CsvLog

COLUMNS = ("step", "user", "preference", *(field.name for field in fields(Bounds)))

# users [B], kind of preference ('sets' or 'levels'), values [B]
BoundsRows = tuple[list[str], str, Bounds]


class BoundsLog:
    """Appends one row per step, context and kind of preference ('sets' or 'levels').

    A run that is resumed continues the file, which `rewind_logs` has cut back to its checkpoint.
    """

    def __init__(self, path: Path) -> None:
        """Open the CSV file, making it where there is none."""
        self._log = CsvLog(path, COLUMNS)

    def append(self, step: int, users: list[str], preference: str, bounds: Bounds) -> None:
        """Write the rows of a step's contexts, `users` naming them."""
        values = [getattr(bounds, field.name).tolist() for field in fields(Bounds)]
        rows = zip(users, *values, strict=True)
        self._log.append((step, user, preference, *row) for user, *row in rows)
