"""Check for users whose lists are pieces of one person's list (`list_links`).

Converters join such rows; files made by hand may still contain them. Then the test answer of one
user is in the training list of another, and a model is rewarded for memorising it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import getLogger
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from recbole.data.dataset import Dataset
from recbole.utils import FeatureType
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from recbole_multdpo.data.list_links import Links, find_links
from recbole_multdpo.errors import DataError, doc_page

SHORTEST_RUN = 3  # items; two are too weak evidence for files of unknown origin
_FEW = 20  # fewer leaked answers are a warning, not an error
_SHARE = 0.01  # as does a smaller share of the test answers


def linked_users(config: Mapping[str, Any], dataset: Dataset) -> Links | None:
    """Find users whose lists are pieces of one list; call it before the data set is split.

    Args:
        config: the run's settings.
        dataset: loaded, in the order of the files.

    Returns:
        Links between inner user ids; None if users are conversations, or if there are no links.
    """
    if config["context"] == "conversation":
        return None
    feat = dataset.inter_feat
    users, items = feat[dataset.uid_field].to_numpy(), feat[dataset.iid_field].to_numpy()
    order = np.arange(len(users))
    time = dataset.time_field
    if time in feat and dataset.field2type[time] == FeatureType.FLOAT:
        order = np.argsort(feat[time].to_numpy(), kind="stable")
    order = order[np.argsort(users[order], kind="stable")]
    ends = np.cumsum(np.bincount(users, minlength=dataset.user_num))
    links = find_links(np.split(items[order], ends[:-1]), shortest=SHORTEST_RUN)
    return links if len(links.first) else None


def check_linked_users(
    config: Mapping[str, Any], dataset: Dataset, parts: Sequence[Dataset], links: Links | None
) -> None:
    """Refuse, or warn of, a split in which linked users leak each other's test answers.

    Args:
        config: the run's settings; `linked_users=keep` only warns.
        dataset: the whole data set.
        parts: training, validation and test.
        links: from `linked_users`.

    Raises:
        DataError: more than a few test answers are in the training list of a linked user.
    """
    if links is None:
        return
    shape = dataset.user_num, dataset.user_num
    graph = coo_array((np.ones(len(links.first)), (links.first, links.second)), shape)
    person = connected_components(graph, directed=False)[1]
    linked = np.bincount(person)[person] > 1
    training, test = (_rows(part, linked) for part in (parts[0], parts[-1]))
    # training lists of the person that contain an answer, not counting the user's own
    lists = training.assign(person=person[training["user"]]).value_counts(["person", "item"])
    answers = test.assign(person=person[test["user"]])
    n_lists = lists.reindex(pd.MultiIndex.from_frame(answers[["person", "item"]]), fill_value=0)
    own = pd.MultiIndex.from_frame(test).isin(pd.MultiIndex.from_frame(training))
    n_leaked, n_test = int((n_lists.to_numpy() > own).sum()), len(parts[-1])
    if not n_leaked:
        return
    found = (
        f"{linked.sum():,} of {dataset.user_num - 1:,} users look like pieces of one person's list "
        f"(windows or growing prefixes: the lists fit together by {links.min_overlap} or more "
        f"items in a row), and {n_leaked:,} of {n_test:,} test answers are in the training list of "
        "another such user"
    )
    if config["linked_users"] == "keep" or n_leaked < max(_FEW, _SHARE * n_test):
        getLogger().warning(f"{found}. Models may have memorised them.")
        return
    raise DataError(
        f"{found}. Make one list of each person's rows: python -m recbole_multdpo.data.convert "
        f"titles-jsonl does it for lists of titles ({doc_page('datasets')}). If they are different "
        "people, or you want the figures anyway, set --linked_users=keep."
    )


def _rows(part: Dataset, wanted: NDArray[np.bool_]) -> pd.DataFrame:
    """The distinct (user, item) pairs of the wanted users in a part."""
    users, items = (part.inter_feat[f].numpy() for f in (part.uid_field, part.iid_field))
    return pd.DataFrame({"user": users, "item": items})[wanted[users]].drop_duplicates()
