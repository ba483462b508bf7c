"""What training logs for figures: `steps.csv` and `validations.csv` of a run's folder.

TensorBoard shows the same while a run is going on. These files hold every step once, also when the
run was interrupted and resumed, and need no special reader.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from recbole_multdpo.errors import DataError
from recbole_multdpo.runs.csv_log import CsvLog, read_rows

STEPS_FILE, VALIDATIONS_FILE = "steps.csv", "validations.csv"
METRICS = ("loss", "positive_logp", "negative_logp", "margin", "grad_norm", "learning_rate")
STEP_COLUMNS = ("stage", "step", "epoch", "seconds", *METRICS)
VALIDATION_COLUMNS = ("stage", "step", "metric", "value")


class StepLog:
    """Appends one row per optimizer step, and one per metric of a validation.

    `seconds` is the wall time of the stage up to the end of the step: validations inside the stage
    are part of it, the time between an interruption and `--resume` is not. A metric that a loss
    does not have is an empty cell.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        """Open both files.

        Args:
            folder: the run's folder.
            stage: name of the stage.
        """
        self._stage = stage
        self._steps = CsvLog(folder / STEPS_FILE, STEP_COLUMNS)
        self._validations = CsvLog(folder / VALIDATIONS_FILE, VALIDATION_COLUMNS)
        rows = read_rows(folder / STEPS_FILE, STEP_COLUMNS)
        try:
            spent = max((float(r["seconds"]) for r in rows if r["stage"] == stage), default=0.0)
        except ValueError as error:
            raise DataError(f"{folder / STEPS_FILE}: {error}. Remove it.") from error
        self._start = time.perf_counter() - spent

    def step(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Write a step; both numbers count from 1, `metrics` may have more than the columns."""
        seconds = round(time.perf_counter() - self._start, 3)
        values = [metrics.get(name, "") for name in METRICS]
        self._steps.append([(self._stage, step, epoch, seconds, *values)])

    def validation(self, step: int, result: Mapping[str, float]) -> None:
        """Write the metrics of a validation after a step."""
        self._validations.append(
            (self._stage, step, name, float(value)) for name, value in result.items()
        )
