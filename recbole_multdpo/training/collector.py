"""RecBole's collector for rankings of which only the first K items are known."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import torch
from recbole.config import Config
from recbole.evaluator import Collector
from recbole.evaluator.collector import DataStruct
from torch import Tensor

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.runtime import processes
from recbole_multdpo.scoring.topk import TopK

OF_USERS = ("rec.items", "rec.topk", "rec.meanrank")  # RecBole's collected data of one row per user


class TopKCollector(Collector):
    """Feeds RecBole's evaluator from a `TopK`; dense scores are collected by RecBole's own code.

    The metrics read `rec.items` [users, K] and `rec.topk` [users, K + 1] (hit or not at each rank,
    then the number of the user's positives); neither needs the scores of items below rank K.

    Each of several processes collects the users that it ranks. `get_data_struct` returns all users
    on every rank, in the order of `users`: metrics are sums of the same numbers in the same order
    as in one process.

    Attributes:
        users: long [n], all users to be ranked; set before an evaluation by several processes.
        record: called with every batch's rankings, whole ones; None for no call.
    """

    def __init__(self, config: Config) -> None:
        """Set up the data that RecBole's metrics need.

        Args:
            config: the run's configuration (metrics, topk, eval_args, device).

        Raises:
            ConfigError: a metric needs the rank of every item, and validation or test ranks the
                full catalogue.
        """
        super().__init__(config)
        self.users: Tensor | None = None
        self.record: Callable[[TopK | Tensor], None] | None = None
        self._collected: list[Tensor] = []
        ranks_in_full = "full" in config["eval_args"]["mode"].values()
        if ranks_in_full and self.register.need("rec.meanrank"):
            raise ConfigError(
                "metrics: GAUC needs the rank of every item, but LLMRec finds the best topk items "
                "only. Remove it, or set eval_args mode to uniN for validation and test."
            )

    def fresh(self) -> TopKCollector:
        """Copy with the data of the training part and without rankings."""
        other = copy(self)
        other.data_struct = DataStruct()
        other.data_struct._data_dict = dict(self.data_struct._data_dict)
        other._collected = []
        return other

    def eval_batch_collect(  # type: ignore[no-untyped-def]
        self, scores_tensor, interaction, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        """Collect one batch of B users.

        Args:
            scores_tensor: a `TopK` of at least max(topk) columns, or RecBole's dense scores
                [B, n_items]. Item 0 pads a `TopK` and is a miss.
            interaction: holds the B users.
            positive_u: long [n], rows of the users' positives in the batch.
            positive_i: long [n], the positives; a repeated pair counts once.
        """
        if self.record is not None:
            self.record(scores_tensor)
        if self.users is not None:
            self._collected.append(interaction[self.config["USER_ID_FIELD"]].cpu())
        if not isinstance(scores_tensor, TopK):
            super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
            return
        items = scores_tensor.items[:, : max(self.topk)].cpu()
        positive_u, positive_i = positive_u.cpu(), positive_i.cpu()
        if self.register.need("rec.items"):
            self.data_struct.update_tensor("rec.items", items)
        if self.register.need("rec.topk"):
            stride = int(max(items.max(), positive_i.max())) + 1
            pairs = torch.arange(len(items))[:, None] * stride + items  # [B, K]
            positives = torch.unique(positive_u * stride + positive_i)
            hits = torch.isin(pairs, positives) & (items > 0)  # [B, K]
            n_positives = torch.bincount(positives // stride, minlength=len(items))[:, None]
            self.data_struct.update_tensor("rec.topk", torch.cat([hits.int(), n_positives], dim=1))

    def get_data_struct(self):  # type: ignore[no-untyped-def]
        """RecBole's collected data of all users, gathered from all processes.

        Raises:
            RuntimeError: a user was not ranked by exactly one process.
        """
        if self.users is not None:
            self._exchange(self.users)
        self.users, self._collected = None, []
        return super().get_data_struct()

    def _exchange(self, users: Tensor) -> None:
        """Gather the rows of all `users` (long [n]) from all processes, in this order."""
        own = torch.cat([users[:0], *self._collected])
        # without users, RecBole's data lack the keys
        keys = [key for key in OF_USERS if len(own) and self.register.need(key)]
        shares = processes.all_gather((own, {key: self.data_struct.get(key).cpu() for key in keys}))
        ranked = torch.cat([users_of for users_of, _ in shares])
        if not ranked.sort().values.equal(users.sort().values):
            raise RuntimeError("the processes did not rank every user exactly once")
        place = torch.empty(int(users.max()) + 1, dtype=torch.long)
        place[ranked] = torch.arange(len(ranked))
        for key in OF_USERS:
            if self.register.need(key):
                rows = torch.cat([of_users[key] for _, of_users in shares if of_users])
                self.data_struct.set(key, rows[place[users]])
