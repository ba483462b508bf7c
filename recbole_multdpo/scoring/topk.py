"""The result of ranking a catalogue, and the common rule for ties."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_multdpo.errors import TrainingError

NAN_SCORES = (
    "the model's log-probabilities contain NaN; check its weights (did training diverge?) or rank "
    "in float32."
)


@dataclass(frozen=True)
class TopK:
    """The k best allowed items of B users.

    Attributes:
        items: long [B, k], best first, equal scores by ascending item id; padded with item 0 for
            users with fewer than k rankable items.
        scores: float32 (float64 for a float64 model) [B, k], nats, log π(item | prompt), summed
            over the item's tokens, plus its bias if it has one; −inf where `items` is 0.
        expanded: long [B], trie nodes fed to the model after the prompt.
    """

    items: Tensor
    scores: Tensor
    expanded: Tensor


def stable_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best columns of scores [B, n], descending; equal scores in ascending order of column.

    `torch.topk` does not specify the order of equal scores, nor the choice at the last place.
    Columns at −inf are not rankable: they become item 0 with score −inf, as do places beyond n.

    Returns:
        items long [B, k] and scores [B, k].

    Raises:
        ValueError: k < 1.
        TrainingError: a score is NaN.
    """
    if k < 1:
        raise ValueError(f"k={k} is not allowed: it must be at least 1.")
    if scores.isnan().any():
        raise TrainingError(NAN_SCORES)
    taken = min(k, scores.shape[1])
    last = scores.topk(taken, dim=1).values[:, -1:]  # [B, 1], the k-th best score
    above, equal = scores > last, scores == last
    places_left = taken - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= places_left))
    columns = chosen.nonzero()[:, 1].view(len(scores), taken)  # ascending in each row
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order).masked_fill(values == -torch.inf, 0)
    filler = columns.new_zeros(len(scores), k - taken)
    return torch.cat([columns, filler], 1), torch.cat([values, filler.to(values) - torch.inf], 1)
