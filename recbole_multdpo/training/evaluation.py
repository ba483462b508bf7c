"""One pass over the users of a validation or test, for every weight of an assistant."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from logging import getLogger
from typing import Any, TypeVar

import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.interaction import Interaction
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from recbole_multdpo.data.candidates import ListedCandidatesLoader
from recbole_multdpo.ranking.ranker import Ranker
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.console import Progress
from recbole_multdpo.runtime.out_of_memory import is_out_of_memory, release_memory
from recbole_multdpo.scoring.topk import TopK, stable_topk
from recbole_multdpo.training.collector import TopKCollector

Rankings = TypeVar("Rankings", TopK, Tensor)


@torch.no_grad()
def collect_rankings(
    ranker: Ranker,
    weights: Sequence[float],
    loader: AbstractDataLoader,
    collector: TopKCollector,
    show_progress: bool = False,
) -> list[TopKCollector]:
    """Rank the users of a loader, shared by all processes; RecBole's `Trainer.evaluate` as a loop.

    RecBole's evaluates one model at a time. Here the language model scores a batch of users once
    for all weights of its assistant.

    Args:
        ranker: in its model, which is in eval mode.
        weights: of its assistant; its own alone without one.
        loader: full rankings, sampled candidates or lists.
        collector: with the data of the training part; not changed.
        show_progress: show how far it is.

    Returns:
        A collector with the rankings of each weight, on every rank of those users that it ranked.
    """
    collectors = [collector.fresh() for _ in weights]
    if processes.world_size() > 1:
        for of_weight in collectors:
            of_weight.users = torch.as_tensor(loader.uid_list)
    rank = _Pass(ranker, weights, collector, loader).rank
    for batch in Progress(loader, len(loader), "ranking users", show=show_progress):
        users, found = rank(*batch)
        for of_weight, rankings in zip(collectors, found, strict=True):
            of_weight.eval_batch_collect(rankings, users, *batch[2:])
    return collectors


@torch.no_grad()
def ranking_seconds(
    ranker: Ranker, loader: AbstractDataLoader, collector: TopKCollector, n_users: int
) -> float:
    """Seconds that ranking the users of a loader is likely to take, by ranking a few of them.

    The users are those in the middle of the loader, where the prompts are of middle length.

    Args:
        ranker: in its model, which is in eval mode.
        loader: as for `collect_rankings`; its users are sorted by the length of their prompts.
        collector: with the data of the training part; not changed.
        n_users: number of users to be ranked now, at most.
    """
    n_all = loader.sample_size
    first = max(n_all // 2 - n_users // 2, 0)
    some = range(first, min(first + n_users, n_all))
    rank = _Pass(ranker, [ranker.weight], collector, loader).rank
    batch = loader.collate_fn(some)
    rank(*loader.collate_fn(range(first, first + 1)))  # reads the catalogue, where that is needed
    start = time.perf_counter()
    rank(*batch)
    return (time.perf_counter() - start) / len(some) * n_all / processes.world_size()


class _Pass:
    """Rankings of batches of users in RecBole's form, with each of the weights.

    Attributes:
        most_users: users ranked together, at most, after a batch ran out of memory; None before.
    """

    def __init__(
        self,
        ranker: Ranker,
        weights: Sequence[float],
        collector: TopKCollector,
        loader: AbstractDataLoader,
    ) -> None:
        self.ranker, self.weights, self.n_items = ranker, weights, loader._dataset.item_num
        self.k = max(collector.topk)
        self.most_users: int | None = None
        self.ranks_all = collector.register.need("rec.meanrank")
        # of a list that is kept, more than the places of held-out items counts
        self.stops_early = ranker.settings.stop_at_metrics and collector.record is None
        self.rank: Callable[..., tuple[Interaction, Any]] = self.sampled
        if isinstance(loader, FullSortEvalDataLoader):
            self.rank = self.full
        elif isinstance(loader, ListedCandidatesLoader):
            self.k, self.rank = loader.largest, self.listed
        self.field, self.item_field = (
            collector.config[f"{kind}_ID_FIELD"] for kind in ("USER", "ITEM")
        )

    def full(
        self, interaction: Interaction, history: Any, positive_u: Tensor, positive_i: Tensor
    ) -> tuple[Interaction, list[TopK]]:
        """Rankings of the catalogue without the items of `history`."""
        users, device = interaction[self.field], self.ranker.model.device
        excluded = torch.zeros(len(users), self.n_items, dtype=torch.bool, device=device)
        excluded[history[0].to(device), history[1].to(device)] = True
        targets = self._targets(positive_u, positive_i)
        return interaction, self._in_halves(
            lambda rows: self.ranker.topk_by_weight(
                self.weights, users[rows], excluded[rows], self.k, _rows_of(targets, rows)
            ),
            len(users),
        )

    def sampled(
        self, interaction: Interaction, rows: Tensor, positive_u: Tensor, positive_i: Tensor
    ) -> tuple[Interaction, list[TopK] | list[Tensor]]:
        """Rankings of candidates; scores [B, n_items] if a metric needs the ranks of all."""
        users, candidates = self._candidates(interaction, rows)
        of_users = Interaction({self.field: users})
        if self.ranks_all:
            return of_users, self._scores(users, candidates)
        targets = self._targets(positive_u, positive_i)
        return of_users, self._in_halves(
            lambda rows: self.ranker.topk_among(
                self.weights, users[rows], candidates[rows], self.k, _rows_of(targets, rows)
            ),
            len(users),
        )

    def listed(
        self, interaction: Interaction, rows: Tensor, positive_u: Tensor, positive_i: Tensor
    ) -> tuple[Interaction, list[TopK] | list[Tensor]]:
        """Whole lists in order: every candidate is scored, in one pass; else as `sampled`."""
        users, candidates = self._candidates(interaction, rows)
        scores = self._scores(users, candidates)
        if self.ranks_all:
            return Interaction({self.field: users}), scores
        none = torch.zeros(len(users), dtype=torch.long, device=candidates.device)
        found = [TopK(*stable_topk(of_weight, self.k), none) for of_weight in scores]
        return Interaction({self.field: users}), found

    def _candidates(self, interaction: Interaction, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Users of a batch, long [B], and their candidates, bool [B, n_items] on the device."""
        users = torch.empty(int(rows.max()) + 1, dtype=torch.long)
        users[rows] = interaction[self.field]
        candidates = torch.zeros(len(users), self.n_items, dtype=torch.bool)
        candidates[rows, interaction[self.item_field]] = True
        return users, candidates.to(self.ranker.model.device)

    def _scores(self, users: Tensor, candidates: Tensor) -> list[Tensor]:
        """Scores of candidates with each weight, [B, n_items], −inf for other items."""
        return self._in_halves(
            lambda rows: self.ranker.scores_among(self.weights, users[rows], candidates[rows]),
            len(users),
        )

    def _in_halves(self, rank: Callable[[slice], list[Rankings]], n_users: int) -> list[Rankings]:
        """Results of `rank` for `n_users` rows of a batch, one for each weight.

        A batch that runs out of memory is ranked again in halves, and later batches are too: the
        keys and values of a search grow with its users.
        """
        found: list[list[Rankings]] = []
        start = 0
        while start < n_users:
            size = min(self.most_users or n_users, n_users - start)
            try:
                found.append(rank(slice(start, start + size)))
                start += size
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error) or size == 1:
                    raise
                error.__traceback__ = None  # it keeps the tensors of the search alive
            release_memory()
            self.most_users = size // 2
            getLogger().warning(
                f"out of memory while ranking {size} users together: at most {self.most_users} are "
                "from here on, with the same result"
            )
        return [_joined(parts) for parts in zip(*found, strict=True)]

    def _targets(self, positive_u: Tensor, positive_i: Tensor) -> Tensor | None:
        """Positives of each user, long [B, T], 0-padded; None if complete lists are wanted."""
        if not self.stops_early:
            return None
        rows = [positive_i[positive_u == row] for row in range(int(positive_u.max()) + 1)]
        return pad_sequence(rows, batch_first=True).to(self.ranker.model.device)


def _rows_of(targets: Tensor | None, rows: slice) -> Tensor | None:
    """Some rows of the targets, if there are any."""
    return None if targets is None else targets[rows]


def _joined(parts: Sequence[Any]) -> Any:
    """Rankings, or scores, of several groups of users, one after the other."""
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    names = ("items", "scores", "expanded")
    return TopK(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
