"""RecBole's data set with conversations, item texts and preference levels."""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger
from pathlib import Path

import numpy as np
import torch
from recbole.data.dataset import Dataset

from recbole_multdpo.data.conversations import Conversations, read_conversations
from recbole_multdpo.data.counted_dataset import CountedDataset
from recbole_multdpo.data.item_text import TextReport, make_item_texts, read_item_file, text_columns
from recbole_multdpo.data.low_ratings import times_of_rows
from recbole_multdpo.data.user_items import UserItems
from recbole_multdpo.errors import ConfigError, DataError
from recbole_multdpo.runtime.console import log_detail


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
            self,
            self.config["item_text_fields"],
            self.config["item_year_field"],
            self.config["item_text_template"],
        )
        log = getLogger().warning if self.text_report.n_missing else log_detail
        log(str(self.text_report))

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
        times = times_of_rows(self)
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
    dataset: Dataset,
    text_fields: Sequence[str],
    year_field: str | None,
    template: str | None = None,
) -> tuple[list[str], TextReport]:
    """Read the texts of a data set's items from its `.item` file.

    Args:
        dataset: any RecBole data set.
        text_fields: columns that form the text.
        year_field: column that disambiguates items with the same text, or None.
        template: an `ItemTemplate` that takes the place of `text_fields`.

    Returns:
        One text per inner item id (entry 0 is [PAD]), and a report on them.

    Raises:
        ConfigError: there are neither `text_fields` nor a template.
        DataError: the file cannot be read, or contains no text.
    """
    of_text = text_columns(text_fields, template)
    if not of_text:
        raise ConfigError(
            "item_text_fields is empty: name the .item columns that form an item's text, e.g. "
            '--item_text_fields="[movie_title]", or set it in the data set\'s property file'
        )
    columns = [*of_text, *([year_field] if year_field else [])]
    path = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    rows = read_item_file(
        path,
        columns,
        " | ".join([dataset.iid_field, *(dataset.config["alias_of_item_id"] or [])]),
        dataset.config["field_separator"],
        dataset.config["encoding"],
    )
    tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field]]
    return make_item_texts(tokens, rows, len(of_text), template)
