"""The file `bounds.csv` of a run: both losses and their bounds for every context of every step."""

from __future__ import annotations

import csv
from dataclasses import fields
from pathlib import Path

from recbole_multdpo.atomic import write_atomically
from recbole_multdpo.losses import Bounds

COLUMNS = ("step", "user", "preference", *(field.name for field in fields(Bounds)))


class BoundsLog:
    """Appends one row per step, context and kind of preference ('sets' or 'levels').

    A run that is resumed continues the file: what was written after its last checkpoint is dropped,
    because those steps are computed again.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        """Open the file.

        Args:
            path: the CSV file.
            last_step: rows of later steps are dropped; 0 begins anew.
        """
        self.path = path
        kept = [",".join(COLUMNS)]
        if last_step and path.exists():
            rows = path.read_text(encoding="utf-8").splitlines()[1:]
            kept += [row for row in rows if int(row.split(",", 1)[0]) <= last_step]
        write_atomically(path, "\n".join(kept) + "\n")

    def append(self, step: int, users: list[str], preference: str, bounds: Bounds) -> None:
        """Write the rows of a step's contexts, `users` naming them."""
        values = [getattr(bounds, field.name).tolist() for field in fields(Bounds)]
        with self.path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            for user, *row in zip(users, *values, strict=True):
                writer.writerow([step, user, preference, *row])
