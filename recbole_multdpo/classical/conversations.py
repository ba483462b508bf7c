"""RecBole's models on conversations: those that score a user from the user's item row alone.

A test conversation is a user that no model has seen. EASE, SLIMElastic and ItemKNN score the row x
of a user's items as x W, so the row of a new user can be filled with the items that the
conversation mentions. W is learnt from the training conversations only, with the mentioned and the
recommended items of each as one row. Pop and Random need no user. Models with an embedding or a
graph node per user have none for a new one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.model.general_recommender.itemknn import ItemKNN
from scipy.sparse import csr_matrix, issparse

from recbole_multdpo.data.dataset import ContextDataset
from recbole_multdpo.data.user_items import UserItems
from recbole_multdpo.settings.conversation_models import USER_FREE


def conversation_model(config: Config, train: ContextDataset) -> AbstractRecommender:
    """Build a model on the training conversations; a user's row holds the mentioned items.

    Args:
        config: the run's configuration, of a model that `check_conversation_model` accepts.
        train: the training part.
    """
    name = config["model"]
    if name in USER_FREE:
        return config.model_class(config, train)
    assert train.conversations is not None
    mentioned = train.conversations.mentioned
    model: Any = config.model_class(config, _with_rows(train, mentioned))
    rows = user_matrix(mentioned, train.item_num)
    if name == "ItemKNN":
        model.pred_mat = rows.dot(model.w).tolil()
    else:
        model.interaction_matrix = rows
    return model


def user_matrix(items: UserItems, n_items: int) -> csr_matrix:
    """Matrix with 1 where a user has an item, float32 [n_users, n_items]."""
    ones = np.ones(len(items.items), dtype=np.float32)
    return csr_matrix((ones, items.items, items.start), shape=(len(items.counts), n_items))


def item_matrix(model: Any) -> Any:
    """The matrix W [n_items, n_items] of a model that scores a user's row x as x W; None of others.

    Dense or sparse, as the model has it.
    """
    if isinstance(model, ItemKNN):
        return model.w if model.method == "item" else None
    return getattr(model, "item_similarity", None)


def row_scores(model: Any, rows: csr_matrix) -> np.ndarray:
    """Scores of a `ROW_MODELS` model for new users, from their rows: [n, n_items] to the same."""
    scores = rows @ item_matrix(model)
    return np.asarray(scores.todense() if issparse(scores) else scores)


def _with_rows(train: ContextDataset, mentioned: UserItems) -> ContextDataset:
    """The training part with the items that its conversations mention as extra interactions."""
    users, items = (train.inter_feat[f].numpy() for f in (train.uid_field, train.iid_field))
    owners = np.repeat(np.arange(len(mentioned.counts)), mentioned.counts)
    spoken = np.isin(owners, users)  # conversations of the training part
    pairs = np.unique(
        np.concatenate(
            [
                users * train.item_num + items,
                owners[spoken] * train.item_num + mentioned.items[spoken],
            ]
        )
    )
    rows = zip((train.uid_field, train.iid_field), np.divmod(pairs, train.item_num), strict=True)
    return train.copy(Interaction({name: torch.from_numpy(ids) for name, ids in rows}))
