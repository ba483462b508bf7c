"""Load, check and split the data of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from recbole.data.dataset import Dataset
from recbole.utils import init_seed

from recbole_multdpo.data.atomic_file import check_atomic_files
from recbole_multdpo.data.counted_dataset import dataset_class, train_and_valid
from recbole_multdpo.data.dataset import ContextDataset, LLMRecDataset
from recbole_multdpo.data.linked_users import check_linked_users, linked_users
from recbole_multdpo.data.sources import explaining_missing_files
from recbole_multdpo.data.user_items import UserItems
from recbole_multdpo.errors import ConfigError, DataError, MultDPOError
from recbole_multdpo.runs.fingerprints import pairs_fingerprint
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.console import log_detail
from recbole_multdpo.settings.config import Config


def load_dataset(config: Config, make_dataset: Callable[[Config], Dataset]) -> Dataset:
    """Load and filter the data set.

    Raises:
        DataError: files are missing, malformed, or empty after filtering.
    """
    # missing files are downloaded, by one process per machine
    missing = processes.all_reduce_max(int(not Path(config["data_path"]).exists()))
    in_turn = processes.local_main_process_first() if missing else nullcontext()
    try:
        with in_turn, explaining_missing_files(config):
            check_atomic_files(config)
            dataset = make_dataset(config)
    except MultDPOError:
        raise
    # the files are valid: RecBole fails on settings, or on a data set that filters left empty
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{config['dataset']} cannot be used: {error!r}. Is the .inter file empty, does "
            "val_interval, user_inter_num_interval or item_inter_num_interval remove everything, "
            "or is a column that a setting names not in load_col?"
        ) from error
    check_cutoffs(config, dataset)
    log_detail(dataset)
    return dataset


def check_cutoffs(config: Config, dataset: Dataset) -> None:
    """Refuse cutoffs larger than the catalogue.

    Raises:
        ConfigError: it names the size of the catalogue.
    """
    if max(config["topk"]) > dataset.item_num - 1:
        raise ConfigError(
            f"topk={config['topk']} asks for more items than the {dataset.item_num - 1} of the "
            "catalogue; lower --topk"
        )


def split_dataset(config: Config, dataset: Dataset) -> list[Dataset]:
    """Split into training, validation and test part right after seeding: equal for all models."""
    init_seed(config["seed"], config["reproducibility"])
    return dataset.build()


def load_parts(config: Config) -> tuple[Dataset, list[Dataset]]:
    """Load the data set of a run and split it; returns it with the three parts.

    Every call gives the same split.

    Raises:
        DataError: files are missing or malformed, or the split has no rows to train on or to test.
        ConfigError: the data set lacks something that a setting needs.
    """
    make_dataset: Callable[[Config], Dataset]
    if config.settings is not None:
        make_dataset = LLMRecDataset
    elif config["context"] == "conversation":
        make_dataset = ContextDataset
    else:
        make_dataset = dataset_class(config)
    dataset = load_dataset(config, make_dataset)
    check_labels(config, dataset)
    links = linked_users(config, dataset)
    parts = split_dataset(config, dataset)
    _check_parts(config, dataset, parts)
    check_linked_users(config, dataset, parts, links)
    getLogger().info(_data_line(config, dataset, parts))
    return dataset, parts


def _data_line(config: Config, dataset: Dataset, parts: Sequence[Dataset]) -> str:
    """Size of the data set and of the parts of its split, without RecBole's padding rows."""
    train, valid, test = map(len, parts)
    return (
        f"data: {config['dataset']}, {dataset.row_counts.kept}, a catalogue of "
        f"{dataset.item_num - 1:,}; {train:,} interactions to train, {valid:,} to validate, "
        f"{test:,} to test"
    )


def check_labels(config: Config, dataset: Dataset) -> None:
    """Refuse evaluation by labels that the data set lacks.

    Raises:
        ConfigError: it says how to add them.
    """
    label = config["LABEL_FIELD"]
    if "labeled" in config["eval_args"]["mode"].values() and label not in dataset.inter_feat:
        raise ConfigError(
            f"eval_args: mode labeled needs a label of every row. Add a column {label}:float of 0 "
            "and 1 to the .inter file and to load_col; a model that learns from labelled rows, "
            "such as NeuMF or FM, also takes --train_neg_sample_args=~ with "
            f"--threshold=\"{{'{config['RATING_FIELD']}': 4}}\"."
        )


def known_at_test(config: Config, parts: Sequence[LLMRecDataset]) -> UserItems:
    """Histories for the test prompts, chosen by `test_information`.

    Not used where prompts show conversations.
    """
    settings = config.settings
    assert settings is not None
    known = parts[0] if config["test_information"] == "train" else train_and_valid(list(parts))
    return known.user_items(settings.levels)


def _check_parts(config: Config, dataset: Dataset, parts: Sequence[Dataset]) -> None:
    """Refuse a split that cannot be trained on and tested.

    Raises:
        DataError: the training or test part is empty, or the validation part where the model needs
            one; or a user has all items, for whom RecBole's samplers fail.
    """
    files, made_by = config["benchmark_filename"], f"eval_args={config['eval_args']}"
    remedy = "give more data, or other shares by --eval_args"
    if files:
        made_by = f"benchmark_filename={files}"
        remedy = "give more data, or name a file of each part by --benchmark_filename"
    if not len(parts[1]) and config.settings is not None and config.settings.ranks_by_validation:
        what = "an assistant" if config.settings.assistant else "grounding_gamma=auto"
        # D3 is a model with an assistant
        instead = "Use --model=LLMRec" if config["model"] == "D3" else "Leave it out"
        raise DataError(
            f"the validation part of the split is empty, and {what} needs one. {instead}, or "
            f"{remedy}."
        )
    for name, part in zip(("training", "test"), (parts[0], parts[2]), strict=True):
        if not len(part):
            raise DataError(
                f"the {name} part of the split is empty: {sum(map(len, parts))} interactions are "
                f"too few for {made_by}. {remedy.capitalize()}."
            )
    pairs = np.unique(np.concatenate([pairs_of(part) for part in parts]))
    complete = np.flatnonzero(np.bincount(pairs // dataset.item_num) >= dataset.item_num - 1)
    if len(complete):
        names = ", ".join(map(str, dataset.id2token(dataset.uid_field, complete[:5])))
        raise DataError(
            f"{len(complete)} users have all {dataset.item_num - 1} items of the catalogue, e.g. "
            f"{names}: nothing can be ranked for them. Leave them out with "
            f'--user_inter_num_interval="[0,{dataset.item_num - 1})", or add items.'
        )


def pairs_of(part: Dataset) -> np.ndarray:
    """One number per interaction of a part, equal for equal pairs of user and item: int64 [n]."""
    users, items = (part.inter_feat[f].numpy() for f in (part.uid_field, part.iid_field))
    return users.astype(np.int64) * part.item_num + items


def count_known_answers(parts: Sequence[Dataset]) -> int:
    """Number of test interactions that repeat a training pair; a warning if there are any.

    RecBole ranks a user's test items even if they are training items too, so that a model can find
    them by memory. (It excludes the other training items.)
    """
    repeated = int(np.isin(pairs_of(parts[2]), pairs_of(parts[0])).sum())
    if repeated:
        getLogger().warning(
            f"{repeated:,} of {len(parts[2]):,} test interactions repeat a training interaction of "
            "the same user with the same item: the metrics partly measure memorisation. "
            "--rm_dup_inter=first keeps one of each pair."
        )
    return repeated


def test_description(part: Dataset) -> dict[str, Any]:
    """Number of users in a part of the split, and the hash of its rows, for `result.json`."""
    n_users = int(part.inter_feat[part.uid_field].unique().numel())
    return {"num_users_evaluated": n_users, "test_set": pairs_fingerprint(part)}
