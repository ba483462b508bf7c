"""The logs `steps.csv` and `validations.csv` of a run, for figures.

They hold every step once, also if the run was interrupted and resumed, and need no special reader.
TensorBoard shows the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from recbole_multdpo.errors import DataError
from recbole_multdpo.runs.csv_log import CsvLog, read_rows

STEPS_FILE, VALIDATIONS_FILE = "steps.csv", "validations.csv"
# a new column goes last: files of older versions keep the columns that they have
METRICS = (
    "loss",
    "positive_logp",
    "negative_logp",
    "margin",
    "grad_norm",
    "learning_rate",
    "reward_accuracy",
    "teacher_loss",
)
STEP_COLUMNS = ("stage", "step", "epoch", "seconds", *METRICS)
VALIDATION_COLUMNS = ("stage", "step", "metric", "value")


class StepLog:
    """Appends one row per optimizer step, and one row per metric of a validation.

    `seconds` is the wall time of the stage until the end of the step. It includes validations and
    excludes the time between an interruption and `--resume`. A metric that a stage does not have is
    an empty cell.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        """Open both files.

        Args:
            folder: the run's folder.
            stage: name of the stage.

        Raises:
            DataError: `steps.csv` is damaged.
        """
        self._stage = stage
        self._steps = CsvLog(folder / STEPS_FILE, STEP_COLUMNS)
        self._validations = CsvLog(folder / VALIDATIONS_FILE, VALIDATION_COLUMNS)
        rows = read_rows(folder / STEPS_FILE, ("stage", "seconds"))
        try:
            spent = max((float(r["seconds"]) for r in rows if r["stage"] == stage), default=0.0)
        except ValueError as error:
            raise DataError(f"{folder / STEPS_FILE}: {error}. Remove it.") from error
        self._start = time.perf_counter() - spent

    def step(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Write a step.

        Args:
            step: number of the step within the stage, from 1.
            epoch: from 1.
            metrics: by name; those that are no column are left out.
        """
        seconds = round(time.perf_counter() - self._start, 3)
        values = [metrics.get(name, "") for name in METRICS]
        self._steps.append([(self._stage, step, epoch, seconds, *values)])

    def validation(self, step: int, result: Mapping[str, float]) -> None:
        """Write the metrics of a validation that follows a step."""
        self._validations.append(
            (self._stage, step, name, float(value)) for name, value in result.items()
        )
