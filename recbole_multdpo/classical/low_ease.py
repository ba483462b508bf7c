"""EASE on likes and low ratings: RecBole's EASE that also reads what a user rated low.

With `low_rating_weight` a, EASE is fitted to the columns [likes, a * low ratings], 2 * n_items of
them, and scores the likes: a user's scores are x B + a l B', where x and l hold the user's items
and low-rated items of the training part, and B and B' the rows of EASE's solution for both kinds.
A user's likes are never predicted from themselves, as in EASE; a low rating of the same item may
take part, and speaks against it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.general_recommender.ease import EASE
from scipy.sparse import hstack
from torch import Tensor

from recbole_multdpo.classical.conversations import user_matrix
from recbole_multdpo.data.counted_dataset import CountedDataset
from recbole_multdpo.errors import ConfigError

WEIGHT = "low_rating_weight"


class LowRatingEASE(EASE):
    """`EASE` with low ratings; RecBole's attributes, and those of the second half of the columns.

    Attributes:
        item_similarity: float32 [n_items, n_items], scores of the likes by each liked item.
        low_similarity: float32 [n_items, n_items], the same by each low-rated item, times a.
        low_matrix: float32 [n_users, n_items] sparse, 1 for a low rating of the training part.
    """

    def __init__(self, config: Config, dataset: CountedDataset) -> None:
        """Fit the model; the arguments are RecBole's.

        Raises:
            ConfigError: the weight is not positive, or `val_interval` drops no ratings.
        """
        weight = config[WEIGHT]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1e6:
            raise ConfigError(f"{WEIGHT}={weight!r}: must be 0 or a positive number, such as 0.6.")
        if dataset.low_ratings is None or config["context"] == "conversation":
            raise ConfigError(
                f"{WEIGHT}={weight} weighs the ratings that val_interval drops, and there are "
                "none. Limit the ratings, as in --val_interval=\"{'rating': '[4,inf)'}\", with "
                f"context=history; or set --{WEIGHT}=0."
            )
        self.low_matrix = user_matrix(dataset.low_rated_items(), dataset.item_num)
        both = _BothKinds(dataset, weight * self.low_matrix)
        super().__init__(config, both)
        n_items = dataset.item_num
        by_item = np.asarray(vars(self)["item_similarity"])[:, :n_items]
        self.item_similarity = by_item[:n_items].copy()
        self.low_similarity = weight * by_item[n_items:]
        self.interaction_matrix = both.likes

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items for users: float32 [B * n_items]."""
        users = interaction[self.USER_ID].cpu().numpy()
        scores = self.interaction_matrix[users] @ self.item_similarity
        scores = scores + self.low_matrix[users] @ self.low_similarity
        return torch.from_numpy(np.asarray(scores, dtype=np.float32).ravel())

    def predict(self, interaction: Interaction) -> Tensor:
        """Scores of pairs of a user and an item, [B] each: float32 [B]."""
        users, items = (interaction[f].cpu().numpy() for f in (self.USER_ID, self.ITEM_ID))
        found = [
            rows[users].multiply(similarity[:, items].T).sum(1)
            for rows, similarity in (
                (self.interaction_matrix, self.item_similarity),
                (self.low_matrix, self.low_similarity),
            )
        ]
        return torch.from_numpy(np.asarray(sum(found), dtype=np.float32).ravel()).to(self.device)


class _BothKinds:
    """The data set that EASE's constructor reads, with twice the columns in its matrix."""

    def __init__(self, dataset: CountedDataset, low: Any) -> None:
        self._dataset, self._low = dataset, low

    def inter_matrix(self, form: str) -> Any:
        self.likes = self._dataset.inter_matrix(form=form).astype(np.float32)
        return hstack([self.likes, self._low], format="csr", dtype=np.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)
