"""Longer rows of users for RecBole's general models: `test_information=train_valid`.

EASE and its kind score the row of a user's items times a matrix of items, autoencoders and models
of a user's items (FISM, NAIS) read the row as their input. What a model keeps of the training
rows is found by comparing its attributes with what it asked the data set for when it was made; the
same question is then put to training and validation rows together. Scores tell whether that was
all: they must change for users who have more items, and must not for the others.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from scipy.sparse import csr_matrix, issparse
from torch import Tensor

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.settings.information import NO_INPUT, cannot_grow

QUESTIONS = ("inter_matrix", "history_item_matrix")  # what gives rows of users
CHECKED_USERS = 32


@dataclass(frozen=True)
class Question:
    """A call of one of `QUESTIONS` while a model was made, and what it returned."""

    name: str
    arguments: tuple[Any, ...]
    named_arguments: dict[str, Any]
    answer: Any

    def ask(self, dataset: Dataset) -> Any:
        """The same of another data set."""
        return getattr(dataset, self.name)(*self.arguments, **self.named_arguments)


@contextmanager
def noted_questions(train: Dataset) -> Iterator[list[Question]]:
    """Note what is asked of a data set inside the context."""
    questions: list[Question] = []

    def noting(name: str) -> Any:
        method = getattr(train, name)

        def call(*arguments: Any, **named: Any) -> Any:
            answer = method(*arguments, **named)
            questions.append(Question(name, arguments, named, answer))
            return answer

        return call

    for name in QUESTIONS:
        setattr(train, name, noting(name))
    try:
        yield questions
    finally:
        for name in QUESTIONS:
            delattr(train, name)


def show_longer_rows(
    model: Any, config: Any, questions: list[Question], train: Dataset, longer: Dataset
) -> None:
    """Give a trained model longer rows of its users; its weights stay.

    Args:
        model: with the weights to be tested.
        config: the run's configuration.
        questions: what it asked of `train` when it was made.
        train: the training part.
        longer: training and validation rows.

    Raises:
        ConfigError: its scores do not come from rows, or not from rows alone.
    """
    if config["model"] in NO_INPUT:
        return
    grown, same = _some_users(train, longer)
    users = np.concatenate([grown, same])
    before = _scores(model, users, config)
    if hasattr(model, "pred_mat"):
        _rebuild_neighbours(model, config, longer)
    else:
        _replace_rows(model, questions, longer)
    after = _scores(model, users, config)
    close = torch.isclose(before, after, rtol=1e-4, atol=1e-6, equal_nan=True).all(1)
    if not close[len(grown) :].all() or (len(grown) and close[: len(grown)].all()):
        raise ConfigError(cannot_grow(config["model"]))


def _some_users(train: Dataset, longer: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """A few users who have more items in `longer`, and a few who have not."""
    counts = [
        np.bincount(np.asarray(part.inter_feat[part.uid_field]), minlength=part.user_num)
        for part in (train, longer)
    ]
    users = np.flatnonzero(counts[1])
    has_more = counts[1][users] > counts[0][users]
    return users[has_more][:CHECKED_USERS], users[~has_more][:CHECKED_USERS]


@torch.no_grad()
def _scores(model: Any, users: np.ndarray, config: Any) -> Tensor:
    """Scores of the catalogue, float32 [n, n_items], with the same noise at every call."""
    model.eval()
    interaction = Interaction({config["USER_ID_FIELD"]: torch.from_numpy(users)})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            scores = model.full_sort_predict(interaction.to(config["device"]))
        except NotImplementedError:
            raise ConfigError(cannot_grow(config["model"])) from None
    return scores.float().view(len(users), -1)[:, 1:].cpu()


def _replace_rows(model: Any, questions: list[Question], longer: Dataset) -> None:
    """Replace every attribute that is an answer by the answer of `longer`."""
    for question in questions:
        old, new = question.answer, question.ask(longer)
        if issparse(old):
            for name, value in list(vars(model).items()):
                if issparse(value) and _same_matrix(value, old):
                    setattr(model, name, new.astype(value.dtype).asformat(value.format))
            continue
        for old_rows, new_rows in zip(old, new, strict=True):  # items, values, their number
            for name, value in list(vars(model).items()):
                if isinstance(value, Tensor) and _same_tensor(value, old_rows):
                    setattr(model, name, new_rows.to(value))


def _same_matrix(one: Any, other: Any) -> bool:
    if one.shape != other.shape:
        return False
    difference = csr_matrix(one, dtype=np.float64) - csr_matrix(other, dtype=np.float64)
    return not difference.count_nonzero()


def _same_tensor(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one.cpu().double() == other.double()).all())


def _rebuild_neighbours(model: AbstractRecommender, config: Any, longer: Dataset) -> None:
    """ItemKNN's and AsymKNN's scores, which they make when they are made, of longer rows.

    Their constructor is run on the longer rows with the similarities of items as they are fitted.
    """
    module: Any = sys.modules[type(model).__module__]
    fitted = (None, model.w)

    class Fitted:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def compute_similarity(self) -> Any:
            return fitted

        compute_asym_similarity = compute_similarity

    computed, module.ComputeSimilarity = module.ComputeSimilarity, Fitted
    try:
        longer_model = type(model)(config, longer)
    finally:
        module.ComputeSimilarity = computed
    vars(model).update(
        {name: vars(longer_model)[name] for name in ("interaction_matrix", "pred_mat")}
    )
