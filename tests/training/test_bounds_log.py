"""The table of bounds: its rows, and how a resumed run continues it."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from recbole_multdpo.losses import bounds
from recbole_multdpo.training.bounds_log import COLUMNS, BoundsLog


def some_bounds(n_examples: int = 2):  # type: ignore[no-untyped-def]
    logps = torch.tensor([[0.5, -1.0, 0.25]] * n_examples)
    return bounds(logps, torch.zeros_like(logps), torch.tensor([[1, 1, 0]] * n_examples), 1.0)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_per_example_with_every_number(tmp_path: Path) -> None:
    log, found = BoundsLog(tmp_path / "bounds.csv"), some_bounds()
    log.append(3, ["a", "b, c"], "sets", found)
    rows = rows_of(tmp_path / "bounds.csv")
    assert [tuple(row) for row in rows] == [COLUMNS, COLUMNS]
    assert [(row["step"], row["user"], row["preference"]) for row in rows] == [
        ("3", "a", "sets"),
        ("3", "b, c", "sets"),
    ]
    assert float(rows[0]["gap"]) == float(found.gap[0])  # nothing is rounded
    assert rows[1]["n_positives"] == "2"


def test_an_existing_file_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "bounds.csv"
    for step in (1, 2):
        BoundsLog(path).append(step, ["u", "v"], "sets", some_bounds())
    assert [row["step"] for row in rows_of(path)] == ["1", "1", "2", "2"]
