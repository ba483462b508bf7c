"""LLMRec's ranking: the best items by log-probability, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.ranking.ranker import Ranker
from recbole_multdpo.scoring.best_first import TrieSearch
from recbole_multdpo.scoring.exhaustive import exhaustive_topk
from recbole_multdpo.scoring.topk import TopK


def exact_topk(
    model: LLMRec,
    prompts: Prompts,
    excluded: Tensor | None,
    k: int,
    targets: Tensor | None = None,
    item_bias: Tensor | None = None,
) -> TopK:
    """The k best items for B prompts, by the search that the setting `ranker` names.

    Args:
        model: gives the log-probabilities.
        prompts: of the B users.
        excluded: as for `Ranker.topk`, and so are `k` and `targets`.
        item_bias: added to the log-probability of each item, [B, n_items], nats.
    """
    if model.settings.ranker == "exhaustive":
        return exhaustive_topk(
            model.score, prompts, excluded, k, n_items=model.n_items, item_bias=item_bias
        )
    search = TrieSearch(model.lm, model.catalogue, prompts, excluded, k, item_bias=item_bias)
    if targets is not None:
        search.set_targets(targets)
    return search.run(expand_per_step=model.settings.expand_per_step)


class ExactRanker(Ranker):
    """Ranks by log-probability plus `weight` times the log-softmax of the assistant's scores."""

    def item_bias(self, user_ids: Tensor) -> Tensor | None:
        """What the assistant adds for users, long [B]: [B, n_items], nats; None for nothing."""
        if self.assistant is None or self.weight == 0:
            return None
        return self.weight * self.assistant.log_probs(user_ids)

    def pair_scores(self, user_ids: Tensor, items: Tensor) -> Tensor:
        """Scores of pairs of a user and an item, long [n] each: float [n], nats."""
        users, row = torch.unique(user_ids, return_inverse=True)
        scores = self.model.score_pairs(self.prompts(users), row, items)
        item_bias = self.item_bias(users)
        return scores if item_bias is None else scores + item_bias[row, items]

    def topk(
        self, user_ids: Tensor, excluded: Tensor | None, k: int, targets: Tensor | None = None
    ) -> TopK:
        """See `Ranker.topk`; scores are nats."""
        item_bias = self.item_bias(user_ids.to(self.model.device))
        return exact_topk(self.model, self.prompts(user_ids), excluded, k, targets, item_bias)

    def rank(self, prompts: Prompts, excluded: Tensor | None, k: int) -> TopK:
        """`topk` for B prompts, without the assistant."""
        return exact_topk(self.model, prompts, excluded, k)
