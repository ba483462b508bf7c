"""Ratings below `val_interval`, split into training, validation and test like all others.

RecBole drops these rows before it splits. Here they are kept aside and split by the same rule, so
that nothing of the future is known:

- In random order, by RecBole's own split of the low-rated rows alone, in an order of their own:
  that of keys of (seed, user, item). The split of the other rows is the same with and without them.
- In order of time, by the times at which the other rows are split: a low rating is known at
  training if it is not later than the last training row of its user (of all users, with
  `group_by: none`), and at validation if it is not later than the last validation row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureType

from recbole_multdpo.data.candidates import token_keys
from recbole_multdpo.data.random_keys import random_keys
from recbole_multdpo.data.user_items import UserItems
from recbole_multdpo.errors import DataError

LOW_STREAM = 13  # separates the order of low ratings from all other draws
_NUMBER = "low_rating"  # column with the number of a row


@dataclass(eq=False)
class LowRatings:
    """The low-rated rows of a data set; parts of one split share the object.

    Attributes:
        users: int64 [n], inner user ids.
        items: int64 [n], inner item ids.
        times: float64 [n], as in the file; None if the data set has none.
        cuts: float64 [2, n_users], times of each user's last training row and last row of training
            and validation, −inf for none, if the split is by order of time. None without times.
        part: int64 [n], 0 training, 1 validation, 2 test; None until it is needed.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray | None
    cuts: np.ndarray | None = None
    part: np.ndarray | None = None

    @classmethod
    def of(cls, dataset: Dataset, dropped: pd.DataFrame) -> LowRatings:
        """Map dropped rows to inner ids, without unknown users and items and without liked pairs.

        Args:
            dataset: the data set with its inner ids.
            dropped: the low-rated rows, with users and items as in the files.
        """
        fields = (dataset.uid_field, dataset.iid_field)
        mapped = [dropped[field].map(dataset.field2token_id[field]) for field in fields]
        known = (mapped[0].notna() & mapped[1].notna()).to_numpy()
        users, items = (ids[known].to_numpy(dtype=np.int64) for ids in mapped)
        pairs = users * dataset.item_num + items
        liked = [dataset.inter_feat[field].to_numpy(dtype=np.int64) for field in fields]
        # the user also rated the item higher
        low = ~np.isin(pairs, liked[0] * dataset.item_num + liked[1])
        times = None
        if has_times(dataset, dropped):
            times = dropped[dataset.time_field].to_numpy(dtype=np.float64)[known][low]
        return cls(users[low], items[low], times)

    def cut(self, dataset: Dataset, parts: Sequence[Dataset]) -> None:
        """Note the times at which a split in order of time divides the rows."""
        by_user = dataset.config["eval_args"]["group_by"] == "user"
        self.cuts = np.full((2, dataset.user_num), -np.inf)
        for row, part in zip((0, 1), parts, strict=False):
            times = times_of_rows(part)
            if times is None:
                self.cuts = None
                return
            if not by_user:
                self.cuts[row:] = np.maximum(self.cuts[row:], times.max(initial=-np.inf))
            for later in self.cuts[row:]:
                np.maximum.at(later, part.inter_feat[part.uid_field].numpy(), times)

    def known(self, dataset: Dataset, parts: Sequence[int]) -> UserItems:
        """Items that each user rated low in some parts, oldest first; their levels mean nothing.

        Args:
            dataset: the data set or a part of it.
            parts: 0 for training, 1 for validation, 2 for test.

        Raises:
            DataError: the split is by order of time and the rows have no times.
        """
        if self.part is None:
            in_time = dataset.config["eval_args"]["order"] == "TO"
            self.part = self._by_time(dataset) if in_time else self._in_random_order(dataset)
        return self._of(np.isin(self.part, list(parts)), dataset.user_num)

    def all(self, n_users: int) -> UserItems:
        """Items that each user rated low at any time."""
        return self._of(np.ones(len(self.users), dtype=bool), n_users)

    def _of(self, rows: np.ndarray, n_users: int) -> UserItems:
        times = None if self.times is None else self.times[rows]
        levels = np.ones(int(rows.sum()), dtype=np.int64)
        return UserItems.build(self.users[rows], self.items[rows], levels, times, n_users)

    def _by_time(self, dataset: Dataset) -> np.ndarray:
        if self.times is None or self.cuts is None:
            raise DataError(
                f"low ratings with eval_args order TO need {dataset.time_field!r}: remove it from "
                "unused_col, and load it"
            )
        return (self.times > self.cuts[:, self.users]).sum(0)

    def _in_random_order(self, dataset: Dataset) -> np.ndarray:
        fields = (dataset.uid_field, dataset.iid_field)
        # inner ids differ between models that load different files
        users, items = (
            token_keys(dataset.field2id_token[field]).view(np.int64)[ids]
            for field, ids in zip(fields, (self.users, self.items), strict=True)
        )
        keys = random_keys(dataset.config["seed"], LOW_STREAM, users, items)
        order = np.argsort(keys, kind="stable")
        columns = {
            fields[0]: self.users[order],
            fields[1]: self.items[order],
            _NUMBER: order,
        }
        rows = copy(dataset)
        rows.inter_feat = Interaction(
            {name: torch.from_numpy(column) for name, column in columns.items()}
        )
        # RecBole's split, without what it does to the rows before
        rows._change_feat_format = rows._drop_unused_col = rows.shuffle = lambda: None
        part = np.full(len(order), 2)
        for number, found in enumerate(Dataset.build(rows)):
            part[found.inter_feat[_NUMBER].numpy()] = number
        return part


def reads_low_ratings(config: Mapping[str, Any]) -> bool:
    """True if a run with these settings depends on low ratings."""
    helpers = [config[key] or {} for key in ("assistant_settings", "sft_teacher_settings")]
    return (
        config["seen_items"] == "rated"
        or config["low_ratings"] not in (None, "ignore")
        or bool(config["disliked_in_prompt"])
        or bool(config["low_rating_weight"])  # of EASE
        or any(settings.get("low_rating_weight") for settings in helpers)
    )


def has_times(dataset: Dataset, rows: pd.DataFrame | Interaction) -> bool:
    """True if rows of a data set have a time as a number."""
    is_number = dataset.field2type.get(dataset.time_field) == FeatureType.FLOAT
    return dataset.time_field in rows and is_number


def times_of_rows(part: Dataset) -> np.ndarray | None:
    """Times of a part's interactions, float64 [n]; None if they have none."""
    if not has_times(part, part.inter_feat):
        return None
    times = part.inter_feat[part.time_field].numpy()
    return times if times.ndim == 1 else times[:, 0]  # RecBole may add a discretised column
