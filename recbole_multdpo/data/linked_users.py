"""Users of a finished data set who look like pieces of one person (`linked_lists`).

Converters join such rows; files that were made by hand may still hold them. Then the test answer of
one user stands in the training list of another, and models are praised for remembering it.
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

from recbole_multdpo.data.linked_lists import Links, find_links
from recbole_multdpo.errors import DataError

SHORTEST_RUN = 3  # items; where nobody knows how the files were made, two prove too little
_FEW = 20  # fewer leaked answers are said, not refused
_SHARE = 0.01  # of the test answers


def linked_users(config: Mapping[str, Any], dataset: Dataset) -> Links | None:
    """Users who are pieces of one list; to be called before the data set is split.

    Args:
        config: the run's settings.
        dataset: loaded, in the order of the files.

    Returns:
        Links between inner user ids; None if conversations are the users, or if there are none.
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
    """Refuse a split, or warn of it, in which linked users tell each other's test answers.

    Args:
        config: the run's settings; `linked_users=keep` only warns.
        dataset: the whole data set.
        parts: training, validation and test.
        links: from `linked_users`.

    Raises:
        DataError: more than a few test answers stand in the training list of a linked user.
    """
    if links is None:
        return
    shape = dataset.user_num, dataset.user_num
    graph = coo_array((np.ones(len(links.first)), (links.first, links.second)), shape)
    person = connected_components(graph, directed=False)[1]
    linked = np.bincount(person)[person] > 1
    training, test = (_rows(part, linked) for part in (parts[0], parts[-1]))
    # how many training lists of the person hold an answer; the user's own does not count
    lists = training.assign(person=person[training["user"]]).value_counts(["person", "item"])
    answers = test.assign(person=person[test["user"]])
    n_lists = lists.reindex(pd.MultiIndex.from_frame(answers[["person", "item"]]), fill_value=0)
    own = pd.MultiIndex.from_frame(test).isin(pd.MultiIndex.from_frame(training))
    n_told, n_test = int((n_lists.to_numpy() > own).sum()), len(parts[-1])
    if not n_told:
        return
    found = (
        f"{linked.sum():,} of {dataset.user_num - 1:,} users look like pieces of one person's list "
        f"(windows or growing prefixes: the lists fit together by {links.min_overlap} or more "
        f"items in a row), and {n_told:,} of {n_test:,} test answers stand in the training list "
        "of such another user"
    )
    if config["linked_users"] == "keep" or n_told < max(_FEW, _SHARE * n_test):
        getLogger().warning(f"{found}. Models may remember them.")
        return
    raise DataError(
        f"{found}. Make one list of each person's rows: python -m recbole_multdpo.data.convert "
        "titles-jsonl does it for lists of titles (docs/datasets.md). If they are different "
        "people, or you want the figures anyway, set --linked_users=keep."
    )


def _rows(part: Dataset, wanted: NDArray[np.bool_]) -> pd.DataFrame:
    """The distinct pairs of user and item of a part, of wanted users."""
    users, items = (part.inter_feat[f].numpy() for f in (part.uid_field, part.iid_field))
    return pd.DataFrame({"user": users, "item": items})[wanted[users]].drop_duplicates()
