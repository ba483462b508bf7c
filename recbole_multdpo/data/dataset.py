"""RecBole's data set with conversations, item texts, low ratings and preference levels."""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureType

from recbole_multdpo.data.conversations import Conversations, read_conversations
from recbole_multdpo.data.counted_dataset import CountedDataset
from recbole_multdpo.data.item_text import TextReport, make_item_texts, read_item_file
from recbole_multdpo.data.random_keys import random_uniforms
from recbole_multdpo.data.user_items import UserItems
from recbole_multdpo.errors import ConfigError, DataError
from recbole_multdpo.runtime.console import log_detail

LOW_STREAM = 7  # separates the choice of low ratings from the training draws


class ContextDataset(CountedDataset):
    """RecBole's `Dataset` with either context of a prompt: histories, or its users' conversations.

    Attributes:
        conversations: with context=conversation, else None.
        repeats: with mentioned_items=exclude, per part the number of recommendations that were left
            out because their conversation had mentioned the item; else empty.
    """

    conversations: Conversations | None = None
    repeats: list[int]

    def _from_scratch(self) -> None:
        super()._from_scratch()
        self.repeats = []
        if self.config["context"] == "conversation":
            self.conversations = read_conversations(
                Path(self.dataset_path) / f"{self.dataset_name}.user",
                self.field2id_token[self.uid_field],
                self.field2id_token[self.iid_field],
                id_column=self.uid_field,
                separator=self.config["field_separator"],
                encoding=self.config["encoding"],
                items_separator=self.config["seq_separator"],
            )

    @property
    def excluded(self) -> UserItems | None:
        """Items that are never answers, negatives or candidates of a user; None for no items."""
        if self.conversations is None or self.config["mentioned_items"] == "keep":
            return None
        return self.conversations.mentioned

    def build(self) -> list[Dataset]:
        """RecBole's parts of the split, without the recommendations of excluded items.

        Raises:
            DataError: a part would be empty.
        """
        parts = super().build()
        if self.excluded is None:
            return parts
        kept = []
        for name, part in zip(("training", "validation", "test"), parts, strict=True):
            users, items = (part.inter_feat[f].numpy() for f in (self.uid_field, self.iid_field))
            repeated = self.excluded.holds(users, items)
            if len(repeated) and repeated.all():
                raise DataError(
                    f"every recommendation of the {name} part is of an item that its conversation "
                    "mentioned before; use --mentioned_items=keep"
                )
            self.repeats.append(int(repeated.sum()))
            kept.append(part.copy(part.inter_feat[torch.from_numpy(~repeated)]))
        getLogger().info(
            "mentioned_items=exclude: recommendations of items mentioned before are left out, "
            f"{self.repeats} of {[len(part) for part in parts]} in training, validation and test"
        )
        return kept


class LLMRecDataset(ContextDataset):
    """`ContextDataset` plus `item_texts`.

    RecBole itself loads, filters, maps ids and splits, so a language model and a classical model
    with the same settings and seed see the same split of the same catalogue.

    Attributes:
        item_texts: one text per inner item id; entry 0 is [PAD].
        text_report: counts of missing, empty and shared texts.
    """

    item_texts: list[str]
    text_report: TextReport

    def _from_scratch(self) -> None:
        super()._from_scratch()
        self.item_texts, self.text_report = read_item_texts(
            self, self.config["item_text_fields"], self.config["item_year_field"]
        )
        log = getLogger().warning if self.text_report.n_missing else log_detail
        log(str(self.text_report))
        if self.config["low_ratings"] != "ignore":
            self._map_low_ratings()

    def _filter_by_field_value(self) -> None:
        """RecBole's filter by `val_interval`, keeping a copy of the rows below the interval."""
        if self.config["low_ratings"] == "ignore":
            super()._filter_by_field_value()
            return
        rating_field, before = self.config["RATING_FIELD"], self.inter_feat.copy()
        super()._filter_by_field_value()
        self._low = before[before[rating_field] < self.inter_feat[rating_field].min()]

    def _map_low_ratings(self) -> None:
        """Map low-rated pairs of known users and items to inner ids, leaving out liked pairs."""
        fields = (self.uid_field, self.iid_field)
        users, items = (self._low[f].map(self.field2token_id[f]) for f in fields)
        known = (users.notna() & items.notna()).to_numpy()
        low = self._low[known]
        users, items = (ids[known].to_numpy(dtype=np.int64) for ids in (users, items))
        # the user also rated the item higher
        liked = np.isin(
            self._pair_keys(users, items), self._pair_keys(*(self.inter_feat[f] for f in fields))
        )
        times = np.full(len(low), -np.inf)
        if self._has_times(low):
            times = low[self.time_field].to_numpy(dtype=np.float64)
        self._low_users, self._low_items = users[~liked], items[~liked]
        self._low_times = times[~liked]
        self._n_interactions = len(self.inter_feat)

    @property
    def low_pairs(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Users and items of all ratings below `val_interval`; None if they are ignored."""
        if self.config["low_ratings"] == "ignore":
            return None
        return self._low_users, self._low_items

    def low_rated_items(self) -> UserItems:
        """Items that each user rated below `val_interval`, limited to what this part may know.

        With `eval_args.order: TO`, items rated until the user's last interaction of the part; in
        random order, the part's share of them, drawn by (seed, user, item): the others would reveal
        which items cannot be test items. The levels in it are meaningless.
        """
        users, items, times = self._low_users, self._low_items, self._low_times
        if self.config["eval_args"]["order"] == "TO":
            own_times, last = self._times_of_rows(), np.full(self.user_num, -np.inf)
            if own_times is None:
                raise DataError(
                    f"low_ratings with eval_args order TO needs {self.time_field!r}: remove it "
                    "from unused_col"
                )
            np.maximum.at(last, self.inter_feat[self.uid_field].numpy(), own_times)
            may_know = times <= last[users]
        else:
            share = len(self.inter_feat) / self._n_interactions
            may_know = random_uniforms(self.config["seed"], LOW_STREAM, users, items) < share
        levels = np.ones(int(may_know.sum()), dtype=np.int64)
        return UserItems.build(
            users[may_know], items[may_know], levels, times[may_know], self.user_num
        )

    def _has_times(self, rows: pd.DataFrame | Interaction) -> bool:
        is_number = self.field2type.get(self.time_field) == FeatureType.FLOAT
        return self.time_field in rows and is_number

    def _times_of_rows(self) -> np.ndarray | None:
        """Times of this part's interactions, float64 [n]; None if they have no times."""
        if not self._has_times(self.inter_feat):
            return None
        times = self.inter_feat[self.time_field].numpy()
        return times if times.ndim == 1 else times[:, 0]  # RecBole may add a discretised column

    def _pair_keys(self, users, items) -> np.ndarray:  # type: ignore[no-untyped-def]
        return np.asarray(users, dtype=np.int64) * self.item_num + np.asarray(items, dtype=np.int64)

    def user_items(self, level_thresholds: Sequence[float]) -> UserItems:
        """This part's interactions grouped by user, oldest first, with preference levels.

        Args:
            level_thresholds: ratings in descending order, e.g. [5, 4.5, 4]: an interaction's level
                is the number of thresholds that its rating reaches. Empty: all levels are 1.

        Raises:
            DataError: thresholds are set but there is no rating, or a rating is below all of them.
        """
        users = self.inter_feat[self.uid_field].numpy()
        items = self.inter_feat[self.iid_field].numpy()
        times = self._times_of_rows()
        levels = np.ones(len(users), dtype=np.int64)
        if level_thresholds:
            rating_field = self.config["RATING_FIELD"]
            if rating_field not in self.inter_feat:
                raise DataError(
                    f"level_thresholds needs ratings, but column {rating_field!r} is not loaded; "
                    "add it to load_col.inter, and remove it from unused_col"
                )
            ratings = self.inter_feat[rating_field].numpy()
            # in the ratings' dtype: 4.1 as float32 is less than 4.1
            thresholds = np.array(level_thresholds, dtype=ratings.dtype)
            levels = (ratings[:, None] >= thresholds).sum(1)
            if (levels == 0).any():
                raise DataError(
                    f"{(levels == 0).sum()} interactions have a rating below the lowest of "
                    f"level_thresholds={level_thresholds}; raise val_interval or lower them"
                )
        return UserItems.build(users, items, levels, times, self.user_num)


def read_item_texts(
    dataset: Dataset, text_fields: Sequence[str], year_field: str | None
) -> tuple[list[str], TextReport]:
    """Read the texts of a data set's items from its `.item` file.

    Args:
        dataset: any RecBole data set.
        text_fields: columns that form the text.
        year_field: column that disambiguates items with the same text, or None.

    Returns:
        One text per inner item id (entry 0 is [PAD]), and a report on them.

    Raises:
        ConfigError: `text_fields` is empty.
        DataError: the file cannot be read, or contains no text.
    """
    if not text_fields:
        raise ConfigError(
            "item_text_fields is empty: name the .item columns that form an item's text, e.g. "
            '--item_text_fields="[movie_title]", or set it in the data set\'s property file'
        )
    columns = [*text_fields, *([year_field] if year_field else [])]
    path = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    rows = read_item_file(
        path,
        columns,
        dataset.iid_field,
        dataset.config["field_separator"],
        dataset.config["encoding"],
    )
    tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field]]
    return make_item_texts(tokens, rows, len(text_fields))
