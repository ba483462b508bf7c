"""The file `bounds.csv` of a run: both losses and their bounds for every example of every step."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from recbole_multdpo.losses import Bounds
from recbole_multdpo.runs.csv_log import CsvLog

COLUMNS = ("step", "user", "preference", *(field.name for field in fields(Bounds)))

# users [B], kind of preference ('sets' or 'levels'), values [B]
BoundsRows = tuple[list[str], str, Bounds]


class BoundsLog:
    """Appends one row per step, example and kind of preference ('sets' or 'levels').

    A resumed run continues the file, which `rewind_logs` has truncated to its checkpoint.
    """

    def __init__(self, path: Path) -> None:
        """Open the CSV file; a new one gets its header."""
        self._log = CsvLog(path, COLUMNS)

    def append(self, step: int, users: list[str], preference: str, bounds: Bounds) -> None:
        """Write one row per example of a step.

        Args:
            step: number of the step within the stage, from 1.
            users: ids in the data files, B strings.
            preference: 'sets' or 'levels'.
            bounds: values [B], nats.
        """
        values = [getattr(bounds, field.name).tolist() for field in fields(Bounds)]
        rows = zip(users, *values, strict=True)
        self._log.append((step, user, preference, *row) for user, *row in rows)
