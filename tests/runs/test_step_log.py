"""The logs of steps and validations: their rows, and a resumed run that repeats none."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from recbole_multdpo.runs.logs import log_sizes, rewind_logs
from recbole_multdpo.runs.step_log import STEP_COLUMNS, StepLog


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_stage(folder: Path, stage: str, steps: range) -> None:
    log = StepLog(folder, stage)
    for step in steps:
        log.step(step, (step + 1) // 2, {"loss": 1 / step, "margin": 0.5, "bounds_sets/gap": 3.0})
        if step % 2 == 0:
            log.validation(step, {"ndcg@5": step / 10, "recall@5": 0.25})


def test_a_row_per_step_and_per_metric_of_a_validation(tmp_path: Path) -> None:
    write_stage(tmp_path, "preference", range(1, 5))
    rows = rows_of(tmp_path / "steps.csv")
    assert tuple(rows[0]) == STEP_COLUMNS
    assert [(row["step"], row["epoch"]) for row in rows] == [
        ("1", "1"),
        ("2", "1"),
        ("3", "2"),
        ("4", "2"),
    ]
    assert float(rows[2]["loss"]) == 1 / 3  # nothing is rounded
    assert rows[0]["positive_logp"] == ""  # not given
    assert [tuple(row.values()) for row in rows_of(tmp_path / "validations.csv")][:2] == [
        ("preference", "2", "ndcg@5", "0.2"),
        ("preference", "2", "recall@5", "0.25"),
    ]


def test_resuming_goes_on_from_the_checkpoint_and_keeps_the_other_stage(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft", range(1, 7))
    write_stage(tmp_path, "preference", range(1, 3))
    sizes = log_sizes(tmp_path)  # the checkpoint
    write_stage(tmp_path, "preference", range(3, 6))
    with (tmp_path / "steps.csv").open("a", encoding="utf-8") as file:
        file.write("preference,6,3,0.1,0.4")  # the machine went down in the middle of a line
    rewind_logs(tmp_path, sizes)
    write_stage(tmp_path, "preference", range(3, 5))
    steps = [(row["stage"], int(row["step"])) for row in rows_of(tmp_path / "steps.csv")]
    assert steps == [("sft", s) for s in range(1, 7)] + [("preference", s) for s in range(1, 5)]
    validated = [(row["stage"], row["step"]) for row in rows_of(tmp_path / "validations.csv")]
    assert validated[::2] == [("sft", s) for s in "246"] + [("preference", s) for s in "24"]


def test_time_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    log = StepLog(tmp_path, "sft")
    now = 107.5
    log.step(1, 1, {})
    now = 5000.0  # resumed on another day
    log = StepLog(tmp_path, "sft")
    now = 5002.0
    log.step(2, 1, {})
    assert [row["seconds"] for row in rows_of(tmp_path / "steps.csv")] == ["7.5", "9.5"]


def test_a_file_of_an_older_version_keeps_its_columns(tmp_path: Path) -> None:
    """New columns come last and are left out, so that offsets of old checkpoints stay right."""
    old = STEP_COLUMNS[:-1]
    (tmp_path / "steps.csv").write_text(",".join(old) + "\n")
    StepLog(tmp_path, "preference").step(1, 1, {"loss": 0.5, "reward_accuracy": 0.75})
    (row,) = rows_of(tmp_path / "steps.csv")
    assert tuple(row) == old and row["loss"] == "0.5"
