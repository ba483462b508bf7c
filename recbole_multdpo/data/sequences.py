"""Validation and test of RecBole's sequential models, one ranking per user.

Before it splits, RecBole makes a row of every event with the earlier events as the input. A later
test row of a user then has test items in its input (a rolling test), seen items may be ranked
again, and every event is a separate ranking. Here sequential models are evaluated like all others:
all held-out rows of a user have the same input, each user gets one ranking with all held-out items
as positives, and seen items are not ranked.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.sampler import Sampler
from recbole.utils import ModelType

PHASES = ("valid", "test")


def with_one_input(parts: Sequence[Dataset], knows_validation: bool) -> list[Dataset]:
    """Give all held-out rows of a user the same input.

    It is RecBole's input of the user's first held-out row: the latest `MAX_ITEM_LIST_LENGTH` events
    before it. The split must be by order of time.

    Args:
        parts: training, validation and test part.
        knows_validation: True if the input of test rows includes the validation items.

    Returns:
        The parts of the split.
    """
    train, valid, test = parts
    held_out = [part.inter_feat for part in (parts[2:] if knows_validation else parts[1:])]
    return [
        train,
        _with_first_input(valid, [valid.inter_feat]),
        _with_first_input(test, held_out),
    ]


def _with_first_input(part: Dataset, sources: Sequence[Interaction]) -> Dataset:
    """Copy of the part, each row with the input of its user's first row among the sources."""
    if not len(part):
        return part
    users = torch.cat([source[part.uid_field] for source in sources]).numpy()
    distinct, at = np.unique(users, return_index=True)
    first = np.zeros(part.user_num, dtype=np.int64)
    first[distinct] = at
    rows = torch.from_numpy(first)[part.inter_feat[part.uid_field]]
    columns = dict(part.inter_feat.interaction)
    for name in input_fields(part):
        columns[name] = torch.cat([source[name] for source in sources])[rows]
    return part.copy(Interaction(columns))


def input_fields(part: Dataset) -> list[str]:
    """The columns of the model's input: lists of earlier values, and their length."""
    suffix = part.config["LIST_SUFFIX"]
    return [
        name
        for name in part.inter_feat.interaction
        if name.endswith(suffix) or name == part.item_list_length_field
    ]


def known_items(parts: Sequence[Dataset]) -> list[set[int]]:
    """Every user's items in some parts, including the first event, which has no row of its own."""
    known: list[set[int]] = [set() for _ in range(parts[0].user_num)]
    for part in parts:
        users = part.inter_feat[part.uid_field].tolist()
        lists = part.inter_feat[part.iid_field + part.config["LIST_SUFFIX"]].numpy()
        for user, item, shown in zip(
            users, part.inter_feat[part.iid_field].tolist(), lists, strict=True
        ):
            known[user].add(item)
            known[user].update(shown[shown > 0].tolist())
    return known


def first_events(parts: Sequence[Dataset]) -> np.ndarray:
    """Items of the events that have no row of their own, one per user: int64 [n].

    There are none but with sequential models: a user's first event is only in later rows' input.
    """
    part = parts[0]
    if part.config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
        return np.zeros(0, dtype=np.int64)
    rows = [part.inter_feat for part in parts]
    users, lengths, items = (
        torch.cat([of_part[name] for of_part in rows]).numpy()
        for name in (
            part.uid_field,
            part.item_list_length_field,
            part.iid_field + part.config["LIST_SUFFIX"],
        )
    )
    seconds = np.flatnonzero(lengths == 1)
    seconds = seconds[np.unique(users[seconds], return_index=True)[1]]
    return items[seconds, 0]


class UserSequenceLoader(FullSortEvalDataLoader):
    """RecBole's full-ranking loader with each user's sequence as the input."""

    def __init__(self, config: Config, dataset: Dataset, sampler: Any) -> None:
        """Wrap RecBole's loader; all rows of a user in `dataset` must have the same input."""
        super().__init__(_as_general(config), dataset, sampler)
        users = dataset.inter_feat[dataset.uid_field].numpy()  # sorted by RecBole's constructor
        self.user_df = dataset[torch.from_numpy(np.unique(users, return_index=True)[1])]

    def collate_fn(self, index: Any) -> Any:
        """RecBole's batch of users, transformed as sequences are."""
        users, *ranked = super().collate_fn(index)
        return self.transform(self._dataset, users), *ranked


def sequence_loaders(config: Config, parts: Sequence[Dataset]) -> list[AbstractDataLoader]:
    """Loaders of the validation and test parts; candidates are items new to the user."""
    sampler = Sampler(["train", *PHASES], list(parts))
    loaders: list[AbstractDataLoader] = []
    for number, phase in enumerate(PHASES, 1):
        arguments = config[f"{phase}_neg_sample_args"]
        of_phase = sampler.set_phase(phase)
        known = known_items(parts[: number + 1])
        of_phase.used_ids = np.array(known + [set()], dtype=object)[:-1]  # sets, not a table
        if arguments["distribution"] != "none":
            of_phase.set_distribution(arguments["distribution"])
        full = config["eval_args"]["mode"][phase] == "full"
        kind = UserSequenceLoader if full else NegSampleEvalDataLoader
        loaders.append(kind(config, parts[number], of_phase))
    return loaders


def _as_general(config: Config) -> Config:
    """Copy of the configuration with the type of a general model, whose loader groups by user."""
    general = copy(config)
    general.final_config_dict = {**config.final_config_dict, "MODEL_TYPE": ModelType.GENERAL}
    return general
