"""The teacher of supervised fine-tuning: one of RecBole's models, whose scores are distilled.

It is trained on the training rows alone: no validation chooses its epochs, so no score depends on
what is held out. A model with an item-item matrix scores any history, so it follows the prompt of
the moment; any other model has one row of scores per user. Either table is stored on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from recbole.data.dataset import Dataset
from recbole.utils import init_seed
from scipy.sparse import csr_matrix, issparse, load_npz, save_npz

from recbole_multdpo.classical.assistant import (
    cache_key,
    read_scores,
    trained_aside,
    write_scores,
)
from recbole_multdpo.classical.conversations import item_matrix
from recbole_multdpo.classical.general_recommender.sequentialrules import recency_rows
from recbole_multdpo.classical.low_ease import WEIGHT, LowRatingEASE
from recbole_multdpo.classical.run import prepare_classical
from recbole_multdpo.data.dataset import ContextDataset
from recbole_multdpo.errors import CheckpointError, DataError
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.console import shows_bars
from recbole_multdpo.runtime.reading import readable
from recbole_multdpo.settings.config import Config

_REMEDY = "Remove its folder to train the teacher again."
_DENSE, _SPARSE, _BY_USER = "item_matrix.npy", "item_matrix.npz", "scores.npy"


@dataclass(frozen=True)
class TableTeacher:
    """A trained teacher: a `data.soft_targets.Teacher`.

    Attributes:
        name: the model.
        table: float32 [n_items, n_items], a row of scores per shown item, dense or sparse, or
            [2 * n_items, n_items] with a row per disliked item too; or [n_users, n_items], a row
            per user.
        by_user: True for a row per user.
        popularity: int64 [n_items], training rows of each item.
        recency: weight of a shown item relative to the next one; 1 for models without order.
    """

    name: str
    table: np.ndarray | csr_matrix
    by_user: bool
    popularity: np.ndarray
    recency: float = 1.0

    def scores(
        self,
        users: np.ndarray,
        shown: Sequence[np.ndarray],
        disliked: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        """Scores of all items for B prompts: float32 [B, n_items]; see `Teacher.scores`."""
        if self.by_user:
            return np.array(self.table[users])
        n_rows, n_items = self.table.shape
        if disliked is not None and n_rows > n_items:
            pairs = zip(shown, disliked, strict=True)
            shown = [np.concatenate([items, n_items + low]) for items, low in pairs]
        found = recency_rows(shown, n_rows, self.recency) @ self.table
        return np.asarray(found.todense() if issparse(found) else found)


def make_teacher(
    config: Config, dataset: ContextDataset, train: ContextDataset, folder: Path
) -> TableTeacher:
    """Train the teacher, or load its table if it is in the folder.

    The global random state is restored afterwards.

    Args:
        config: the teacher's configuration.
        dataset: the whole data set, whose rows are not read: the teacher knows `train` alone.
        train: the rows that the language model is trained on.
        folder: for the tables of teachers, each below its own key.
    """
    own = folder / f"teacher-{cache_key(config, dataset, [train])}"

    def fit() -> None:
        if own.exists():
            getLogger().info(f"teacher {config['model']} taken from {own}")
            return
        # the scratch folder is for RecBole's own checkpoints, which are pickles
        with TemporaryDirectory() as scratch, trained_aside(own) as temporary:
            config["checkpoint_dir"] = scratch
            _write(config, dataset, train, temporary)

    processes.broadcast_from_main(fit)  # the other processes read its file
    items = train.inter_feat[train.iid_field].numpy()
    popularity = np.bincount(items, minlength=train.item_num)
    table, by_user = _read(config, own, train)
    recency = config["recency"] or 1.0  # a setting of models that know order
    return TableTeacher(config["model"], table, by_user, popularity, recency)


def _write(config: Config, dataset: ContextDataset, train: ContextDataset, folder: Path) -> None:
    """Train the model; write its matrix, or its scores of all users."""
    init_seed(config["seed"], config["reproducibility"])
    nothing = train.copy(train.inter_feat[:0])
    run = prepare_classical(config, dataset, [train, nothing, nothing])
    run.fit(shows_bars(config["show_progress"]))
    matrix: Any = item_matrix(run.model)
    if matrix is None:
        users = torch.arange(train.user_num)
        write_scores(folder / _BY_USER, run.model, users, train, config)
        return
    if isinstance(run.model, LowRatingEASE):
        matrix = np.concatenate([matrix, run.model.low_similarity])
    values = matrix.data if issparse(matrix) else matrix
    if not np.isfinite(values).all():
        raise DataError(
            f"teacher {config['model']} gives scores that are not finite. Use other settings of it."
        )
    if issparse(matrix):
        save_npz(folder / _SPARSE, csr_matrix(matrix, dtype=np.float32))
    else:
        np.save(folder / _DENSE, np.asarray(matrix, dtype=np.float32))


def _read(config: Config, folder: Path, train: Dataset) -> tuple[np.ndarray | csr_matrix, bool]:
    """The table that `_write` wrote, and whether it is by user.

    Raises:
        CheckpointError: it is damaged, or has another shape or type.
    """
    n_kinds = 2 if config[WEIGHT] else 1  # likes, and low ratings
    of_items = (n_kinds * train.item_num, train.item_num)
    if (folder / _BY_USER).exists():
        return read_scores(folder / _BY_USER, (train.user_num, train.item_num), _REMEDY), True
    if (folder / _DENSE).exists():
        return read_scores(folder / _DENSE, of_items, _REMEDY), False
    file = folder / _SPARSE
    with readable(file, _REMEDY, CheckpointError, (EOFError, KeyError, BadZipFile)):
        table = load_npz(file)
        if table.shape != of_items or table.dtype != np.float32:
            raise ValueError(f"{table.dtype} {table.shape} instead of float32 {of_items}")
        table.check_format(full_check=True)
    return table, False
