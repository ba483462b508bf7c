"""Training of RecBole's own models: by themselves, or as a language model's assistant."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from logging import getLogger
from typing import Any

from recbole.config import Config
from recbole.data import data_preparation
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.trainer import Trainer
from recbole.utils import get_trainer, init_seed

from recbole_multdpo.data.candidates import with_total_candidates
from recbole_multdpo.data.dataset import ContextDataset
from recbole_multdpo.data.loader import never_rank
from recbole_multdpo.model.row_models import conversation_model


@dataclass(frozen=True)
class ClassicalRun:
    """A model of RecBole that is ready to be trained, with all that RecBole makes for it."""

    model: AbstractRecommender
    trainer: Trainer
    train_data: AbstractDataLoader
    valid_data: AbstractDataLoader
    test_data: AbstractDataLoader

    def fit(self, show_progress: bool) -> dict[str, Any]:
        """Train; returns the validation metrics of the best epoch, {} without a validation part."""
        _, valid_result = self.trainer.fit(
            self.train_data, self.valid_data, show_progress=show_progress
        )
        return dict(valid_result or {})


def prepare_classical(config: Config, dataset: Dataset, parts: list[Dataset]) -> ClassicalRun:
    """RecBole's loaders, model and trainer for a split that is made already.

    Args:
        config: of one of RecBole's models.
        dataset: the whole data set; a `ContextDataset` where contexts are conversations.
        parts: its training, validation and test part.
    """
    split = copy(dataset)
    split.build = lambda: parts  # RecBole splits inside data_preparation
    train_data, valid_data, test_data = data_preparation(config, split)
    valid_data = with_total_candidates(valid_data, "valid")
    test_data = with_total_candidates(test_data, "test")
    if config["context"] == "conversation":
        assert isinstance(dataset, ContextDataset)
        never_rank(valid_data, dataset.excluded)
        never_rank(test_data, dataset.excluded)
    init_seed(config["seed"], config["reproducibility"])
    model = untrained(config, train_data._dataset).to(config["device"])
    getLogger().info(model)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    return ClassicalRun(model, trainer, train_data, valid_data, test_data)


def untrained(config: Config, train: Dataset) -> AbstractRecommender:
    """A model of RecBole as its constructor makes it; on conversations, one of their items."""
    on_conversations = config["context"] == "conversation"
    make_model = conversation_model if on_conversations else config.model_class
    return make_model(config, train)
