"""RecBole's collector for rankings that exist only as their first K items."""

from __future__ import annotations

import torch
from recbole.evaluator import Collector
from torch import Tensor

from recbole_multdpo.scoring.topk import TopK


class TopKCollector(Collector):
    """Feeds RecBole's evaluator from a `TopK`; dense scores go RecBole's own way.

    The metrics read `rec.items` [users, K] and `rec.topk` [users, K + 1] (hit or not at each rank, then the
    number of the user's positives); neither needs the scores of items below rank K.
    """

    def eval_batch_collect(  # type: ignore[no-untyped-def]
        self, scores_tensor, interaction, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        """Collect one batch of users; `scores_tensor` is a `TopK` or RecBole's dense scores."""
        if not isinstance(scores_tensor, TopK):
            super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
            return
        items = scores_tensor.items[:, : max(self.topk)].cpu()
        positive_u, positive_i = positive_u.cpu(), positive_i.cpu()
        if self.register.need("rec.items"):
            self.data_struct.update_tensor("rec.items", items)
        if self.register.need("rec.topk"):
            stride = int(max(items.max(), positive_i.max())) + 1
            pairs = torch.arange(len(items))[:, None] * stride + items
            hits = torch.isin(pairs, positive_u * stride + positive_i) & (items > 0)
            n_positives = torch.bincount(positive_u, minlength=len(items))[:, None]
            self.data_struct.update_tensor("rec.topk", torch.cat([hits.int(), n_positives], dim=1))
