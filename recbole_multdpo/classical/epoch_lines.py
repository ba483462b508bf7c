"""One line per epoch of RecBole's loop, in the form of a language model's.

RecBole logs an epoch in three lines, numbered from 0, one of them with every metric.
"""

from __future__ import annotations

import time
from logging import getLogger
from typing import Any

from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.trainer import Trainer
from recbole.trainer.trainer import TraditionalTrainer

from recbole_multdpo.runtime.console import counted, duration, log_detail


class EpochLines:
    """Logs the epochs of a trainer of RecBole: its own lines are then not needed.

    Attributes:
        best: the epoch with the best validation so far, from 1; 0 before the first.
    """

    def __init__(self, trainer: Trainer, name: str, valid_data: AbstractDataLoader | None) -> None:
        """Listen to a trainer.

        Args:
            trainer: before `fit`.
            name: of its model.
            valid_data: as for `fit`.
        """
        self._trainer, self._name = trainer, name
        self._validates = bool(valid_data) and trainer.eval_step > 0
        self._start = self._epoch_start = time.perf_counter()
        self._n_validations = self._epoch = self.best = 0
        self._loss = ""
        self._tell_loss, self._validate = trainer._generate_train_loss_output, trainer._valid_epoch
        trainer._generate_train_loss_output = self._trained
        trainer._valid_epoch = self._validated

    @property
    def _epochs(self) -> int:
        is_first = str(getattr(self._trainer.model, "train_stage", "")).endswith("pretrain")
        return int(self._trainer.pretrain_epochs if is_first else self._trainer.epochs)

    def _trained(self, epoch: int, start: float, end: float, losses: Any) -> str:
        """Called by RecBole for its own line, after each epoch's training."""
        loss = float(sum(losses) if isinstance(losses, tuple) else losses)
        # what is computed at once, such as EASE, has no loss
        self._loss = "" if isinstance(self._trainer, TraditionalTrainer) else f"loss {loss:.4g}"
        self._epoch = epoch + 1
        if not (self._validates and self._epoch % self._trainer.eval_step == 0):
            self._log(self._loss)
        return str(self._tell_loss(epoch, start, end, losses))

    def _validated(self, *args: Any, **kwargs: Any) -> tuple[float, dict[str, float]]:
        score, result = self._validate(*args, **kwargs)
        trainer, former = self._trainer, self._trainer.best_valid_score
        self._n_validations += 1
        found = f"valid {trainer.valid_metric} {score:.4f}"
        if score >= former if trainer.valid_metric_bigger else score <= former:
            self.best = self._epoch
            found += ", the best so far" if self._n_validations > 1 else ""
        self._log(", ".join(filter(None, [self._loss, found])))
        log_detail("valid: " + ", ".join(f"{key} {value}" for key, value in result.items()))
        return score, result

    def _log(self, text: str) -> None:
        now = time.perf_counter()
        name, left = self._name, ""
        if self._epochs > 1:
            name += f" epoch {self._epoch}/{self._epochs}"
            done = self._epoch - self._trainer.start_epoch
            seconds = (now - self._start) / done * (self._epochs - self._epoch)
            left = f", at most about {duration(seconds)} left" if self._epoch < self._epochs else ""
        took = duration(now - self._epoch_start)
        getLogger().info(f"{name}: {text or 'trained'}; {took}{left}")
        self._epoch_start = now

    def close(self) -> None:
        """Say which epoch was the best, and leave the trainer as it was."""
        trainer = self._trainer
        del trainer._generate_train_loss_output, trainer._valid_epoch  # the class has its own
        if self._n_validations < 2:
            return
        early = ""
        if self._epoch < self._epochs:
            n_worse = counted(trainer.cur_step, "validation")
            early = f", after {n_worse} without improvement (--stopping_step)"
        getLogger().info(f"best of {self._name}: epoch {self.best} of {self._epoch}{early}")
