"""Weights & Biases: a run there for every run here, with one axis for each stage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole.utils.wandblogger import WandbLogger

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.settings.config import Config

# entries of `result.json` and what their metrics are called there
_TESTS = {"test_result": "test", "sft_test_result": "test_sft"}


class StageLogger(WandbLogger):
    """RecBole's logger for one stage, over the steps of the stage.

    What RecBole's loop logs by epoch is left out: it begins at 0 in every stage, so that the curves
    of two stages would overlap. So is its summary of evaluations, each of which overwrites the one
    before.
    """

    def __init__(self, config: Config, stage: str) -> None:
        """Join the open run, if the settings ask for one; metrics begin with the stage's name."""
        super().__init__(config)
        self.stage = stage
        if self.log_wandb:
            self._wandb.define_metric(f"{stage}/*", step_metric=f"{stage}_step")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics at a step of the stage; nothing without `log_wandb`."""
        super().log_metrics({**metrics, f"{self.stage}_step": step}, head=self.stage)

    def log_metrics(self, *_: Any, **__: Any) -> None:
        """Do nothing: RecBole's loop calls it, see the class."""

    def log_eval_metrics(self, *_: Any, **__: Any) -> None:
        """Do nothing: RecBole's evaluation calls it, see the class."""


@contextmanager
def wandb_run(config: Config, folder: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Open a run at Weights & Biases if `log_wandb` is on, and end it with the block.

    After an error it ends as failed. A run that the caller has opened is used, and stays open.
    RecBole's trainers log to the open run. It has the name of the folder; in a comparison, name and
    group come from the environment (`WANDB_NAME`, `WANDB_RUN_GROUP`).

    Args:
        config: the run's configuration.
        folder: the run's folder.

    Yields:
        A function that logs the test metrics of a result, called once at the end.

    Raises:
        ConfigError: Weights & Biases refuses: nobody is logged in, or it cannot be reached.
    """
    if not config["log_wandb"]:
        yield lambda result: None
        return
    import wandb

    is_ours, is_done = wandb.run is None, False
    if is_ours:
        try:
            wandb.init(
                project=config["wandb_project"],
                name=os.environ.get("WANDB_NAME") or folder.name,
                config=config.to_dict(),
            )
        except wandb.errors.Error as error:
            raise ConfigError(
                f"log_wandb=True: Weights & Biases refuses: {error} Or set the environment "
                "variable WANDB_MODE=offline, and send the run later with `wandb sync`."
            ) from error
    try:
        yield _log_tests
        is_done = True
    finally:
        if is_ours:
            wandb.finish(exit_code=0 if is_done else 1)


def _log_tests(result: Mapping[str, Any]) -> None:
    import wandb

    wandb.log(
        {
            f"{head}/{name}": value
            for entry, head in _TESTS.items()
            for name, value in result.get(entry, {}).items()
        }
    )
