"""Add validation items to the user rows of RecBole's models (`test_information=train_valid`).

EASE and similar models score a user's item row times an item matrix; autoencoders and models of a
user's items (FISM, NAIS) take the row as input. A model's copies of the training rows are found by
comparing its attributes with the results of the calls that its constructor made to the data set.
The same calls on training and validation rows together give the replacement. Scores show if all
copies were found: they must change for users with more items, and must not for the others.
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

RECORDED = ("inter_matrix", "history_item_matrix")  # methods that return user rows
CHECKED_USERS = 32


@dataclass(frozen=True)
class RecordedCall:
    """A call to one of the methods in `RECORDED` and its result."""

    name: str
    arguments: tuple[Any, ...]
    named_arguments: dict[str, Any]
    result: Any

    def repeat(self, dataset: Dataset) -> Any:
        """Make the same call to another data set."""
        return getattr(dataset, self.name)(*self.arguments, **self.named_arguments)


@contextmanager
def record_calls(train: Dataset) -> Iterator[list[RecordedCall]]:
    """Record the calls made inside the block to the methods of a data set in `RECORDED`."""
    calls: list[RecordedCall] = []

    def recording(name: str) -> Any:
        method = getattr(train, name)

        def call(*arguments: Any, **named: Any) -> Any:
            result = method(*arguments, **named)
            calls.append(RecordedCall(name, arguments, named, result))
            return result

        return call

    for name in RECORDED:
        setattr(train, name, recording(name))
    try:
        yield calls
    finally:
        for name in RECORDED:
            delattr(train, name)


def extend_user_rows(
    model: Any, config: Any, calls: list[RecordedCall], train: Dataset, longer: Dataset
) -> None:
    """Replace the user rows of a trained model by longer ones; its weights stay.

    Args:
        model: the model with the weights to test.
        config: the run's configuration.
        calls: calls to `train` that the model's constructor made.
        train: the training part.
        longer: training and validation rows.

    Raises:
        ConfigError: the model's scores do not depend on rows, or not on rows alone.
    """
    if config["model"] in NO_INPUT:
        return
    grown, same = _some_users(train, longer)
    users = np.concatenate([grown, same])
    before = _scores(model, users, config)
    if hasattr(model, "history_matrix"):  # ours, which knows the order
        model.interaction_matrix = model.history_matrix(longer)
    elif hasattr(model, "pred_mat"):
        _rebuild_neighbours(model, config, longer)
    else:
        _replace_rows(model, calls, longer)
    after = _scores(model, users, config)
    close = torch.isclose(before, after, rtol=1e-4, atol=1e-6, equal_nan=True).all(1)
    if not close[len(grown) :].all() or (len(grown) and close[: len(grown)].all()):
        raise ConfigError(cannot_grow(config["model"]))


def _some_users(train: Dataset, longer: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """A few users with more items in `longer` than in `train`, and a few others."""
    counts = [
        np.bincount(np.asarray(part.inter_feat[part.uid_field]), minlength=part.user_num)
        for part in (train, longer)
    ]
    users = np.flatnonzero(counts[1])
    has_more = counts[1][users] > counts[0][users]
    return users[has_more][:CHECKED_USERS], users[~has_more][:CHECKED_USERS]


@torch.no_grad()
def _scores(model: Any, users: np.ndarray, config: Any) -> Tensor:
    """Scores of n users for all items, float32 [n, n_items], with the same noise at every call."""
    model.eval()
    interaction = Interaction({config["USER_ID_FIELD"]: torch.from_numpy(users)})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            scores = model.full_sort_predict(interaction.to(config["device"]))
        except NotImplementedError:
            raise ConfigError(cannot_grow(config["model"])) from None
    return scores.float().view(len(users), -1)[:, 1:].cpu()


def _replace_rows(model: Any, calls: list[RecordedCall], longer: Dataset) -> None:
    """Replace every attribute that equals a call's result by the result of `longer`."""
    for call in calls:
        old, new = call.result, call.repeat(longer)
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
    """Recompute the scores of ItemKNN and AsymKNN, which their constructor stores, on longer rows.

    The constructor is run on the longer rows with the fitted item similarities.
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
