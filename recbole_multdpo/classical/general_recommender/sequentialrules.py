r"""
SequentialRules
################################################
Item-to-item rules that know the order of a user's items.

A rule i -> j weighs how often j comes near i in the training sequences: a pair at distance d counts
d^-p, with j before i times `backward`. It is divided by popularity(i)^x popularity(j)^x. A user's
score of j is the sum of the rules from the user's items, each times recency^age, where the latest
item has age 0.

Reference:
    Malte Ludewig and Dietmar Jannach. "Evaluation of session-based recommendation algorithms" in
    User Modeling and User-Adapted Interaction 2018 (SR: rules with weights by distance).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType, ModelType
from scipy.sparse import csr_matrix
from torch import Tensor

from recbole_multdpo.data.user_items import UserItems
from recbole_multdpo.errors import ConfigError


class SequentialRules(GeneralRecommender):
    """Sparse rules between items, and the recency-weighted rows of the users.

    Attributes:
        item_similarity: float32 [n_items, n_items], the rules; row i holds those from item i.
        interaction_matrix: float32 [n_users, n_items], recency^age of each user's items.
    """

    input_type = InputType.POINTWISE
    type = ModelType.TRADITIONAL

    def __init__(self, config: Any, dataset: Any) -> None:
        """Count the rules.

        Args:
            config: settings of properties/model/SequentialRules.yaml.
            dataset: the training part; sequences are in the order of its times.

        Raises:
            ConfigError: the times are not loaded.
        """
        super().__init__(config, dataset)
        self.time_field = config["TIME_FIELD"]
        self.recency = config["recency"]
        self.dummy_param = torch.nn.Parameter(torch.zeros(1))  # RecBole's trainer needs one
        self.item_similarity = rules(
            self._histories(dataset),
            self.n_items,
            distance_power=config["distance_power"],
            max_distance=config["max_distance"],
            backward=config["backward"],
            popularity_power=config["popularity_power"],
        )
        self.interaction_matrix = self.history_matrix(dataset)

    def _histories(self, dataset: Any) -> UserItems:
        """The users' items in order of time."""
        rows = dataset.inter_feat
        if self.time_field not in rows:
            raise ConfigError(
                f"SequentialRules reads the order of time: add {self.time_field} to load_col's "
                "inter list."
            )
        users, items, times = (
            rows[field].numpy() for field in (self.USER_ID, self.ITEM_ID, self.time_field)
        )
        levels = np.ones(len(users), dtype=np.int64)
        return UserItems.build(users, items, levels, times, self.n_users)

    def history_matrix(self, dataset: Any) -> csr_matrix:
        """Rows of users with the items of a part: float32 [n_users, n_items]."""
        known = self._histories(dataset)
        return recency_rows(
            [known.history(user) for user in range(self.n_users)], self.n_items, self.recency
        )

    def calculate_loss(self, interaction: Any) -> Tensor:
        """Nothing is trained by gradients: a loss of 0 for RecBole's trainer."""
        return torch.nn.Parameter(torch.zeros(1))

    def predict(self, interaction: Any) -> Tensor:
        """Scores of (user, item) pairs, float32 [n]."""
        users, items = (interaction[key].cpu().numpy() for key in (self.USER_ID, self.ITEM_ID))
        rules_to = self.item_similarity[:, items].T.tocsr()
        scores = self.interaction_matrix[users].multiply(rules_to).sum(1)
        return torch.from_numpy(np.asarray(scores)[:, 0]).to(self.device)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items for the users, float32 [n * n_items]."""
        rows = self.interaction_matrix[interaction[self.USER_ID].cpu().numpy()]
        return torch.from_numpy((rows @ self.item_similarity).toarray().ravel()).to(self.device)


def rules(
    histories: UserItems,
    n_items: int,
    *,
    distance_power: float,
    max_distance: int,
    backward: float,
    popularity_power: float,
) -> csr_matrix:
    """Rules of all ordered pairs of items that occur in one history.

    Args:
        histories: users' items, oldest first.
        n_items: items with the [PAD] item 0.
        distance_power: p; a pair at distance d counts d^-p.
        max_distance: pairs further apart do not count.
        backward: weight of the rule from the later item to the earlier one.
        popularity_power: x; rules are divided by the popularity of both items to this power.

    Returns:
        float32 [n_items, n_items]; the diagonal is 0, as no history has an item twice.
    """
    items, counts = histories.items, histories.counts
    owners = np.repeat(np.arange(len(counts)), counts)
    forward = csr_matrix((n_items, n_items), dtype=np.float32)
    for distance in range(1, min(max_distance, int(counts.max(initial=0)) - 1) + 1):
        together = owners[distance:] == owners[:-distance]
        pair = items[:-distance][together], items[distance:][together]
        weights = np.full(len(pair[0]), distance**-distance_power, dtype=np.float32)
        forward += csr_matrix((weights, pair), shape=forward.shape)
    both = (forward + backward * forward.T).tocoo()
    popularity = np.bincount(items, minlength=n_items).clip(1).astype(np.float64)
    factors = popularity**-popularity_power
    values = both.data * factors[both.row] * factors[both.col]
    return csr_matrix((values.astype(np.float32), (both.row, both.col)), shape=forward.shape)


def recency_rows(histories: Sequence[np.ndarray], n_items: int, recency: float = 1.0) -> csr_matrix:
    """Rows of histories with recency^age of each item, float32 [n, n_items].

    Args:
        histories: item ids of each row, the latest last, of age 0.
        n_items: items with the [PAD] item 0.
        recency: weight of an item relative to the one after it; 1: order does not matter.
    """
    start = np.cumsum([0, *map(len, histories)])
    items = np.concatenate([np.zeros(0, dtype=np.int64), *histories])
    age = np.repeat(start[1:], np.diff(start)) - 1 - np.arange(len(items))
    return csr_matrix(
        (np.power(recency, age, dtype=np.float32), items, start), shape=(len(histories), n_items)
    )
