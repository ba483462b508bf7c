"""RecBole's models on conversations: those whose scores of a user come from the user's row alone.

A conversation of the test part is a user that no model has seen. EASE, SLIMElastic and ItemKNN
score the row x of a user's items as x W, with W learnt from other users, so the row of a new user
may be filled with the items that the conversation mentions. W is learnt from the training
conversations alone, the mentioned and the recommended items of each as one row. Pop and Random need
no user. Models with an embedding or a graph node per user have none for a new one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from scipy.sparse import csr_matrix

from recbole_multdpo.data.contexts import UserItems
from recbole_multdpo.data.dataset import ContextDataset
from recbole_multdpo.errors import ConfigError

USER_FREE = ("Pop", "Random")
ROW_MODELS = ("EASE", "ItemKNN", "SLIMElastic")


def check_conversation_model(config: Config) -> None:
    """Refuse a model that cannot score conversations.

    Raises:
        ConfigError: the model knows users only by their id.
    """
    name = config["model"]
    by_user = name == "ItemKNN" and config["knn_method"] != "item"
    if name not in (*ROW_MODELS, *USER_FREE) or by_user:
        raise ConfigError(
            f"model={name} knows users by their id, and every conversation of the test part is a "
            f"new one. Use {', '.join((*ROW_MODELS, *USER_FREE))} or LLMRec (ItemKNN with "
            "knn_method=item)."
        )


def conversation_model(config: Config, train: ContextDataset) -> AbstractRecommender:
    """The model, learnt from training conversations; every user's row is what was mentioned.

    Args:
        config: the run's configuration, of a model that `check_conversation_model` lets pass.
        train: the training part.
    """
    name = config["model"]
    if name in USER_FREE:
        return config.model_class(config, train)
    assert train.conversations is not None
    mentioned = train.conversations.mentioned
    model: Any = config.model_class(config, _with_rows(train, mentioned))
    rows = csr_matrix(
        (np.ones(len(mentioned.items), dtype=np.float32), mentioned.items, mentioned.start),
        shape=(train.user_num, train.item_num),
    )
    if name == "ItemKNN":
        model.pred_mat = rows.dot(model.w).tolil()
    else:
        model.interaction_matrix = rows
    return model


def _with_rows(train: ContextDataset, mentioned: UserItems) -> ContextDataset:
    """The training part, with what its conversations mention as further interactions."""
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
