"""LLMRec's ranking: the best items by log-probability, exactly."""

from __future__ import annotations

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

    def item_bias(self, user_ids: Tensor) -> Tensor | None:
        """Sum to add to the items' log-probabilities for users, long [B]: [B, n_items] or None."""
        if self.assistant is None or self.weight == 0:
            return None
        return self.weight * self.assistant.log_probs(user_ids)

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

    def topk_among(
        self, user_ids: Tensor, candidates: Tensor, k: int, targets: Tensor | None = None
    ) -> TopK:
        """See `Ranker.topk_among`; a search among them feeds a small part of their tokens."""
        if self.settings.ranker != "best_first":
            return super().topk_among(user_ids, candidates, k, targets)
        return self.topk(user_ids, ~candidates, k, targets)

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
