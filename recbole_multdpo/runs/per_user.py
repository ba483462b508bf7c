"""Test metrics of every user, as RecBole's own metric classes compute them.

They are written to `per_user.csv` in the run's folder, for significance tests and user groups.
"""

from __future__ import annotations

from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.config import Config
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset
from recbole.evaluator import Evaluator

from recbole_multdpo.errors import MultDPOError
from recbole_multdpo.runtime.csv_table import read_table
from recbole_multdpo.runtime.reading import is_file, readable
from recbole_multdpo.runtime.shown_text import csv_cell, csv_text

FILE_NAME = "per_user.csv"
START_FILE = "per_user_sft.csv"  # the same of the model that preference training starts from
ID_COLUMNS = ("user", "n_train", "n_test")
RECALL_HEAD, RECALL_TAIL = "recall_head", "recall_tail"
NORMAL_95 = 1.96  # standard errors on each side of a 95 % interval of a mean
DEFAULT_TAIL = 0.1  # RecBole's, where tail_ratio is not set


class PerUserEvaluator(Evaluator):
    """RecBole's evaluator that also keeps the per-user values of its metrics.

    Attributes:
        values: metric name such as `ndcg@10` to its values [users], in the evaluated order, of the
            last evaluation. Metrics of the whole result, such as ItemCoverage, have none.
        n_positives: number of each user's positives [users]; None if no metric needs hits.
        hits: bool [users, max(topk)], True for recommended items that are positives; None likewise.
        items: long [users, max(topk)], the recommended items; None if no metric needs them.
    """

    def __init__(self, config: Config) -> None:
        """Take RecBole's argument."""
        super().__init__(config)
        self.values: dict[str, np.ndarray] = {}
        self.n_positives: np.ndarray | None = None
        self.hits: np.ndarray | None = None
        self.items: np.ndarray | None = None
        for metric in self.metric_class.values():
            # averages values [users, max(topk)]; metrics of the whole result have no such method
            if hasattr(metric, "topk_result"):
                metric.topk_result = partial(self._keep, metric.topk_result)

    def _keep(self, average: Any, name: str, value: np.ndarray) -> Any:
        for k in self.config["topk"]:
            self.values[f"{name}@{k}"] = value[:, k - 1]
        return average(name, value)

    def evaluate(self, dataobject):  # type: ignore[no-untyped-def]
        """Compute RecBole's metrics of the collected data and set the attributes."""
        self.values, self.hits, self.n_positives, self.items = {}, None, None, None
        if "rec.topk" in dataobject:
            collected = dataobject.get("rec.topk").numpy()
            self.hits, self.n_positives = collected[:, :-1].astype(bool), collected[:, -1]
        if "rec.items" in dataobject:
            self.items = dataobject.get("rec.items").numpy()
        return super().evaluate(dataobject)


def write_per_user(
    path: Path, evaluator: PerUserEvaluator, loader: AbstractDataLoader, train: Dataset
) -> None:
    """Write one row per evaluated user: `user`, `n_train`, `n_test`, then the metrics.

    A run whose metrics are not averages over users writes nothing. With `test_information=rolling`
    each event is tested on its own, so a user may have several rows. If a metric needs the
    recommended items, `recall_head@k` and `recall_tail@k` are the shares of the user's popular and
    other test items that are found (`head_items`), empty for a user without such items.

    Args:
        path: the CSV file; the mean of each metric's column is the metric that RecBole reports.
        evaluator: after the evaluation of `loader`.
        loader: the evaluated loader.
        train: the training part, for `n_train`: the user's number of training rows.

    Raises:
        MultDPOError: the file cannot be written.
    """
    if evaluator.n_positives is None:
        return
    dataset = loader._dataset
    test_users, test_items = (
        np.asarray(dataset.inter_feat[field]) for field in (dataset.uid_field, dataset.iid_field)
    )
    users = getattr(loader, "uid_list", None)
    if users is None:  # one row per event
        users, rows = test_users, np.arange(len(test_users))
    else:
        users = np.asarray(users)
        row_of = np.empty(dataset.user_num, dtype=np.int64)
        row_of[users] = np.arange(len(users))
        rows = row_of[test_users]
    n_train = np.bincount(np.asarray(train.inter_feat[train.uid_field]), minlength=dataset.user_num)
    columns = {
        "user": [csv_cell(str(user)) for user in dataset.id2token(dataset.uid_field, users)],
        "n_train": n_train[users],
        "n_test": evaluator.n_positives,
        **evaluator.values,
        **_recall_by_popularity(evaluator, train, rows, test_items),
    }
    try:
        pd.DataFrame(columns).to_csv(path, index=False, float_format="%.7g")
    except OSError as error:
        raise MultDPOError(f"cannot write {path}: {error.strerror}. Free space.") from error


def describe_tested_users(
    evaluator: PerUserEvaluator, part: Dataset, loader: AbstractDataLoader
) -> dict[str, Any]:
    """Describe and log a test of some users (`test_users`), for `result.json`; {} if it is of all.

    `test_margin` is the half-width of the 95 % interval of `valid_metric`, which is its mean over
    the tested users, by their standard error. It has no entry for a metric that is no such mean,
    nor where all users have the same value.

    Args:
        evaluator: after the test.
        part: the whole test part.
        loader: the tested loader.
    """
    n_tested, n_all = (
        len(np.unique(np.asarray(each.inter_feat[each.uid_field])))
        for each in (loader._dataset, part)
    )
    if n_tested == n_all:
        return {}
    name = str(evaluator.config["valid_metric"]).lower()
    values = evaluator.values.get(name, np.empty(0))
    line = f"test: {n_tested:,} of {n_all:,} users (--test_users)"
    described: dict[str, Any] = {"test_users": n_tested, "of_test_users": n_all}
    # In a rolling test a user has several values, which are not independent. Equal values, such as
    # no hit of anybody, tell nothing about the spread.
    if len(values) == n_tested and np.ptp(values) > 0:
        margin = NORMAL_95 * float(np.std(values, ddof=1)) / n_tested**0.5
        line += f"; {name} {values.mean():.4f} ± {margin:.4f} (95 %)"
        described["test_margin"] = {name: margin}
    getLogger().info(line)
    return described


def head_items(counts: np.ndarray, tail_ratio: float | None) -> np.ndarray:
    """Mask of the popular items: those that RecBole's TailPercentage does not count as tail.

    Items without training rows, which RecBole does not define, belong to the tail.

    Args:
        counts: int [n_items], training rows of every item.
        tail_ratio: the setting: share of the items with training rows that form the tail, or, above
            1, the largest number of rows of an item in the tail.

    Returns:
        bool [n_items].
    """
    ratio = DEFAULT_TAIL if tail_ratio is None or tail_ratio <= 0 else tail_ratio
    if ratio > 1:
        return counts > ratio
    seen = np.flatnonzero(counts)
    by_count = seen[np.argsort(counts[seen], kind="stable")]
    head = np.zeros(len(counts), dtype=bool)
    head[by_count[max(int(len(seen) * ratio), 1) :]] = True
    return head


def _recall_by_popularity(
    evaluator: PerUserEvaluator, train: Dataset, rows: np.ndarray, test_items: np.ndarray
) -> dict[str, np.ndarray]:
    """Columns `recall_head@k` and `recall_tail@k` [n_rows]; NaN without such a test item.

    Args:
        evaluator: after the evaluation.
        train: the training part.
        rows: int [n_test], the evaluated row that each test item belongs to.
        test_items: int [n_test].
    """
    if evaluator.items is None or evaluator.hits is None:
        return {}
    counts = np.bincount(np.asarray(train.inter_feat[train.iid_field]), minlength=train.item_num)
    is_head = head_items(counts, evaluator.config["tail_ratio"])
    positives = np.unique(np.stack([rows, test_items]), axis=1)  # a repeated pair counts once
    columns = {}
    for name, group in ((RECALL_HEAD, is_head), (RECALL_TAIL, ~is_head)):
        wanted = np.bincount(positives[0][group[positives[1]]], minlength=len(evaluator.hits))
        found = (evaluator.hits & group[evaluator.items]).cumsum(1)
        for k in evaluator.config["topk"]:
            columns[f"{name}@{k}"] = np.where(
                wanted > 0, found[:, k - 1] / np.maximum(wanted, 1), np.nan
            )
    return columns


def read_per_user(path: Path) -> pd.DataFrame:
    """Read `per_user.csv`; user ids are text as in the data set, an empty cell is NaN.

    Raises:
        MultDPOError: the file is missing or damaged.
    """
    if not is_file(path):
        raise MultDPOError(f"there is no {path}: the run did not finish, or ranks nothing.")
    columns = {"user": str, "n_train": float, "n_test": float}
    with readable(path, "Remove the run's folder and run it again.", MultDPOError, (TypeError,)):
        rows = read_table(path, columns, dtype={"user": str}, keep_default_na=False, na_values=[""])
        metrics = [name for name in rows.columns if name != "user"]
        rows["user"] = rows["user"].map(csv_text)
        rows[metrics] = rows[metrics].astype(float, errors="raise")
    return rows.astype({name: int for name in ("n_train", "n_test") if rows[name].notna().all()})
