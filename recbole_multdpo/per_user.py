"""The test metrics of every single user, as RecBole's own metric classes compute them.

Written as `per_user.csv` into each run's folder: what significance tests and groups of users need.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.config import Config
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset
from recbole.evaluator import Evaluator

from recbole_multdpo.errors import MultDPOError

FILE_NAME = "per_user.csv"
ID_COLUMNS = ("user", "n_train", "n_test")


class PerUserEvaluator(Evaluator):
    """RecBole's evaluator, which also keeps what its metrics average over users.

    Attributes:
        values: metric name such as `ndcg@10` to its values [users], in the evaluated order, of the
            last evaluation. Metrics of the whole result, such as ItemCoverage, have none.
        n_positives: number of each user's positives [users]; None where no metric needs hits.
    """

    def __init__(self, config: Config) -> None:
        """RecBole's argument."""
        super().__init__(config)
        self.values: dict[str, np.ndarray] = {}
        self.n_positives: np.ndarray | None = None
        for metric in self.metric_class.values():
            # what averages the values [users, max(topk)]; some metrics have nothing of the kind
            if hasattr(metric, "topk_result"):
                metric.topk_result = partial(self._keep, metric.topk_result)

    def _keep(self, average: Any, name: str, value: np.ndarray) -> Any:
        for k in self.config["topk"]:
            self.values[f"{name}@{k}"] = value[:, k - 1]
        return average(name, value)

    def evaluate(self, dataobject):  # type: ignore[no-untyped-def]
        """RecBole's metrics of the collected data; `values` and `n_positives` are set anew."""
        self.values = {}
        hits = dataobject.get("rec.topk").numpy() if "rec.topk" in dataobject else None
        self.n_positives = None if hits is None else hits[:, -1]
        return super().evaluate(dataobject)


def write_per_user(
    path: Path, evaluator: PerUserEvaluator, loader: AbstractDataLoader, train: Dataset
) -> None:
    """Write one row per evaluated user: `user`, `n_train`, `n_test`, then the metrics.

    A run whose metrics are no averages over users writes nothing. RecBole's sequential models are
    tested on each event apart, so a user may have several rows.

    Args:
        path: the CSV file; the mean of each metric's column is the metric that RecBole reports.
        evaluator: after the evaluation of `loader`.
        loader: what was evaluated.
        train: the training part: `n_train` counts its rows of the user.

    Raises:
        MultDPOError: the file cannot be written.
    """
    if evaluator.n_positives is None:
        return
    dataset = loader._dataset
    users = getattr(loader, "uid_list", None)
    if users is None:
        users = dataset.inter_feat[dataset.uid_field]
    users = np.asarray(users)
    n_train = np.bincount(np.asarray(train.inter_feat[train.uid_field]), minlength=dataset.user_num)
    columns = {
        "user": dataset.id2token(dataset.uid_field, users),
        "n_train": n_train[users],
        "n_test": evaluator.n_positives,
        **evaluator.values,
    }
    try:
        pd.DataFrame(columns).to_csv(path, index=False, float_format="%.7g")
    except OSError as error:
        raise MultDPOError(f"cannot write {path}: {error.strerror}. Free space.") from error


def read_per_user(path: Path) -> pd.DataFrame:
    """The file's rows; user ids are text as in the data set.

    Raises:
        MultDPOError: there is no such file.
    """
    if not path.is_file():
        raise MultDPOError(f"there is no {path}: the run did not finish, or ranks nothing.")
    return pd.read_csv(path, dtype={"user": str}, keep_default_na=False)
