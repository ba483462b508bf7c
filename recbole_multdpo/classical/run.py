"""Train RecBole's own models: as baselines, or as a language model's assistant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
from recbole.config import Config
from recbole.data import data_preparation
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.trainer import Trainer
from recbole.utils import ModelType, get_trainer, init_seed

from recbole_multdpo.classical.conversations import conversation_model
from recbole_multdpo.classical.epoch_lines import EpochLines
from recbole_multdpo.classical.low_ease import WEIGHT, LowRatingEASE
from recbole_multdpo.classical.user_rows import RecordedCall, extend_user_rows, record_calls
from recbole_multdpo.data.candidates import with_keyed_candidates
from recbole_multdpo.data.counted_dataset import train_and_valid
from recbole_multdpo.data.loader import exclude_items, never_ranked, tested_part
from recbole_multdpo.data.sequences import sequence_loaders, with_one_input
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.runtime.console import counted, log_detail
from recbole_multdpo.runtime.free_memory import free_bytes
from recbole_multdpo.settings.information import KEY

# settings that name columns of the data
_COLUMN_SETTINGS = ("selected_features", "item_attribute", "numerical_features", "transform")


@dataclass(frozen=True)
class ClassicalRun:
    """A model of RecBole that is ready to be trained, with RecBole's loaders and trainer.

    Attributes:
        dataset: the whole data set.
        parts: its training, validation and test part.
        calls: calls to the training part that the model's constructor made, see `record_calls`.
        has_best_weights: True if they are loaded; else RecBole's evaluation has to load them.
    """

    config: Config
    dataset: Dataset
    parts: list[Dataset]
    model: AbstractRecommender
    calls: list[RecordedCall]
    trainer: Trainer
    train_data: AbstractDataLoader
    valid_data: AbstractDataLoader
    test_data: AbstractDataLoader
    has_best_weights: bool = False

    def fit(self, show_progress: bool) -> dict[str, Any]:
        """Train; returns the validation metrics of the best epoch, {} without a validation part."""
        told = isinstance(self.trainer, Trainer)  # RecBole's trees are fitted in another way
        with closing(self._lines()) if told else nullcontext():
            _, valid_result = self.trainer.fit(
                self.train_data, self.valid_data, verbose=not told, show_progress=show_progress
            )
        return dict(valid_result or {})

    def _lines(self) -> EpochLines:
        return EpochLines(self.trainer, str(self.config["model"]), self.valid_data)

    def for_test(self, show_progress: bool) -> ClassicalRun:
        """The trained run for the test, with the data that `test_information` allows.

        Raises:
            ConfigError: the validation items cannot be added to the model's input.
        """
        information = self.config[KEY]
        if information not in self._changes_at_test() or not len(self.parts[1]):
            return self
        # loads the weights of the best epoch and its number
        self.trainer.resume_checkpoint(self.trainer.saved_model_file)
        if information == "refit":
            n_epochs = self.trainer.start_epoch
            getLogger().info(f"refit on training and validation rows: {counted(n_epochs, 'epoch')}")
            run = prepare_classical(self.config, self.dataset, refit_parts(self.parts))
            run.trainer.epochs = n_epochs
            run.trainer.eval_step = 0
            run.trainer.wandblogger.log_wandb = False  # its epochs lie on the first fit's
            run.fit(show_progress)
            return run
        return self.with_validation_items()

    def with_validation_items(self) -> ClassicalRun:
        """The run, whose best weights are loaded, with validation items in the model's input.

        Raises:
            ConfigError: the model does not score users from their rows.
        """
        if self.config["MODEL_TYPE"] != ModelType.SEQUENTIAL:  # their loaders have the items
            longer = train_and_valid(self.parts)
            extend_user_rows(self.model, self.config, self.calls, self.parts[0], longer)
        return replace(self, has_best_weights=True)

    def _changes_at_test(self) -> tuple[str, ...]:
        """Values of `test_information` that change the model, not only its loaders."""
        sequential = self.config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        return ("refit",) if sequential else ("refit", "train_valid")


@contextmanager
def explain_errors(config: Config) -> Iterator[None]:
    """Turn exceptions of RecBole's code inside the block into errors with a remedy.

    RecBole does not check that a model's columns are loaded, that its negatives are drawn, or that
    the columns it reads are known for candidates too.

    Raises:
        ConfigError: RecBole raised a KeyError, a ValueError or a NotImplementedError.
    """
    try:
        yield
    except (KeyError, ValueError, NotImplementedError) as error:
        *_, (frame, _) = walk_tb(error.__traceback__)
        if Path(frame.f_code.co_filename).is_relative_to(Path(__file__).parents[1]):
            raise  # a bug of ours
        negatives = isinstance(error, KeyError) and config["NEG_PREFIX"] in str(error)
        remedy = "Set --train_neg_sample_args=\"{'distribution': 'uniform', 'sample_num': 1}\""
        if not negatives:
            named = ["load_col", *(key for key in _COLUMN_SETTINGS if config[key])]
            remedy = (
                "A column that it names must be loaded, and be of users or items; see "
                f"{', '.join(f'--{key}' for key in named)}"
            )
        raise ConfigError(
            f"RecBole's {config['model']} fails with these data and settings: {error!r}. {remedy}."
        ) from error


def refit_parts(parts: list[Dataset]) -> list[Dataset]:
    """Parts with validation rows moved into the training part; the validation part is empty."""
    return [train_and_valid(parts), parts[1].copy(parts[1].inter_feat[:0]), parts[2]]


def prepare_classical(config: Config, dataset: Dataset, parts: list[Dataset]) -> ClassicalRun:
    """Make RecBole's loaders, model and trainer for an existing split.

    Args:
        config: configuration of one of RecBole's models.
        dataset: the whole data set; a `ContextDataset` if there are conversations.
        parts: its training, validation and test part.
    """
    split = copy(dataset)
    split.build = lambda: parts  # RecBole splits inside data_preparation
    train_data, valid_data, test_data = data_preparation(config, split)
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL and config[KEY] != "rolling":
        of_users = with_one_input(parts, knows_validation=config[KEY] != "train")
        valid_data, test_data = sequence_loaders(config, of_users)
    valid_data = with_keyed_candidates(valid_data, "valid")
    test_data = with_keyed_candidates(_of_tested_users(test_data), "test")
    exclude_items(valid_data, never_ranked(config, dataset, "valid"))
    exclude_items(test_data, never_ranked(config, dataset, "test"))
    init_seed(config["seed"], config["reproducibility"])
    with record_calls(train_data._dataset) as calls:
        model = build_model(config, train_data._dataset).to(config["device"])
    getLogger().info(f"model: {config['model']}")
    log_detail(model)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    # a trainer with fewer epochs than eval_step would never validate, and save no weights
    trainer.eval_step = min(trainer.eval_step, trainer.epochs)
    return ClassicalRun(
        config, dataset, parts, model, calls, trainer, train_data, valid_data, test_data
    )


def _of_tested_users(loader: AbstractDataLoader) -> AbstractDataLoader:
    """A test loader for `test_users` users; the samplers still know the rows of all users."""
    config, part = loader.config, loader._dataset
    tested = tested_part(config, part)
    return loader if tested is part else type(loader)(config, tested, loader._sampler)


def build_model(config: Config, train: Dataset) -> AbstractRecommender:
    """Construct a model of RecBole, untrained.

    For conversations it is `conversation_model`'s, with `low_rating_weight` a `LowRatingEASE`.
    """
    on_conversations = config["context"] == "conversation"
    make_model = conversation_model if on_conversations else config.model_class
    if config["model"] == "EASE":
        _check_memory_of_ease(train.item_num * (2 if config[WEIGHT] else 1))
        if config[WEIGHT]:
            make_model = LowRatingEASE
    return make_model(config, train)


def _check_memory_of_ease(n_columns: int) -> None:
    """Refuse EASE where its matrices would not fit, before the system ends the process.

    Raises:
        ConfigError: matrices [n_columns, n_columns] take more than the free memory: the Gram matrix
            in float32, and NumPy's copy of it, its inverse and the workspace in float64.
    """
    needed, free = 28 * n_columns**2, free_bytes(torch.device("cpu"))
    if needed > free:
        raise ConfigError(
            f"EASE of {n_columns:,} columns needs {needed / 2**30:,.1f} GiB of memory, and "
            f"{free / 2**30:,.1f} GiB are free. Use ItemKNN in its place, which keeps neighbours "
            "only; LLMRec without a teacher is --sft_teacher=~."
        )
