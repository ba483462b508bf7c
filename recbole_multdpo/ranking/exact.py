"""LLMRec's ranking: the best items by log-probability, exactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.ranking.ranker import Ranker
from recbole_multdpo.scoring.best_first import TrieSearch
from recbole_multdpo.scoring.exhaustive import exhaustive_topk
from recbole_multdpo.scoring.topk import TopK


class ExactRanker(Ranker):
    """Ranks by log-probability plus `weight` times the log-softmax of the assistant's scores.

    Scores are nats.
    """

    @staticmethod
    def bias_factor(weight: float) -> float:
        """Factor of `whole_bias` with a weight of the assistant."""
        return weight

    def whole_bias(self, user_ids: Tensor) -> Tensor:
        """Sum to add to the items' log-probabilities, times `bias_factor`: [B, n_items]."""
        assert self.assistant is not None
        return self.assistant.log_probs(user_ids)

    def item_bias(self, user_ids: Tensor) -> Tensor | None:
        """Sum to add to the items' log-probabilities for users, long [B]: [B, n_items] or None."""
        if self.assistant is None or self.weight == 0:
            return None
        return self.bias_factor(self.weight) * self.whole_bias(user_ids)

    def pair_scores(self, user_ids: Tensor, items: Tensor) -> Tensor:
        """See `Ranker.pair_scores`."""
        users, row = torch.unique(user_ids, return_inverse=True)
        scores = self.model.score_pairs(self.prompts(users), row, items)
        item_bias = self.item_bias(users)
        return scores if item_bias is None else scores + item_bias[row, items]

    def topk(
        self, user_ids: Tensor, excluded: Tensor | None, k: int, targets: Tensor | None = None
    ) -> TopK:
        """See `Ranker.topk`."""
        item_bias = self.item_bias(user_ids.to(self.model.device))
        return self._search(self.prompts(user_ids), excluded, k, targets, item_bias)

    def topk_by_weight(
        self,
        weights: Sequence[float],
        user_ids: Tensor,
        excluded: Tensor | None,
        k: int,
        targets: Tensor | None = None,
    ) -> list[TopK]:
        """See `Ranker.topk_by_weight`; one search feeds the model for all weights."""
        if len(weights) == 1 or self.assistant is None or self.settings.ranker != "best_first":
            return super().topk_by_weight(weights, user_ids, excluded, k, targets)
        search = TrieSearch(
            self.model.lm,
            self.model.catalogue,
            self.prompts(user_ids),
            excluded,
            k,
            item_bias=self.whole_bias(user_ids.to(self.model.device)),
            weights=[self.bias_factor(weight) for weight in weights],
        )
        if targets is not None:
            search.set_targets(targets)
        return search.run_all(expand_per_step=self.settings.expand_per_step)

    def topk_among(
        self,
        weights: Sequence[float],
        user_ids: Tensor,
        candidates: Tensor,
        k: int,
        targets: Tensor | None = None,
    ) -> list[TopK]:
        """See `Ranker.topk_among`; a search among them feeds a small part of their tokens."""
        if self.settings.ranker != "best_first":
            return super().topk_among(weights, user_ids, candidates, k, targets)
        return self.topk_by_weight(weights, user_ids, ~candidates, k, targets)

    def scores_among(
        self, weights: Sequence[float], user_ids: Tensor, candidates: Tensor
    ) -> list[Tensor]:
        """See `Ranker.scores_among`; the model scores once for all weights."""
        if self.assistant is None:
            return super().scores_among(weights, user_ids, candidates)
        (logps,) = super().scores_among([0.0], user_ids, candidates)
        bias = self.whole_bias(user_ids.to(logps.device)).masked_fill(~candidates, 0.0)
        return [logps + self.bias_factor(weight) * bias for weight in weights]

    def rank(self, prompts: Prompts, excluded: Tensor | None, k: int) -> TopK:
        """See `Ranker.rank`."""
        return self._search(prompts, excluded, k, targets=None, item_bias=None)

    def _search(
        self,
        prompts: Prompts,
        excluded: Tensor | None,
        k: int,
        targets: Tensor | None,
        item_bias: Tensor | None,
    ) -> TopK:
        model = self.model
        if self.settings.ranker == "exhaustive":
            return exhaustive_topk(
                model.score, prompts, excluded, k, n_items=model.n_items, item_bias=item_bias
            )
        search = TrieSearch(model.lm, model.catalogue, prompts, excluded, k, item_bias=item_bias)
        if targets is not None:
            search.set_targets(targets)
        return search.run(expand_per_step=self.settings.expand_per_step)
