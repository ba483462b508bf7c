"""Sets, boundaries and orders that preference levels define.

`levels` is integer [B, C] throughout: higher is better, >= 1 positive, 0 negative, −2 negatives
ranked below those, −1 padding.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PADDING_LEVEL = -1
LOWER_NEGATIVE_LEVEL = -2  # negatives ranked below those of level 0; -1 is padding
NEGATIVE_LEVEL = 0
POSITIVE_LEVEL = 1  # the lowest positive level; more preferred items have higher levels


def set_masks(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Boolean masks [B, C] of the positives (level >= 1) and of all negatives."""
    return levels >= POSITIVE_LEVEL, (levels < POSITIVE_LEVEL) & (levels != PADDING_LEVEL)


def set_means(values: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Means of values [B, C] over each example's positives and negatives: two [B]; NaN if empty.

    Applied to `rewards`, their difference is the reward margin.
    """
    positives, negatives = (
        torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1) for mask in set_masks(levels)
    )
    return positives, negatives


def reward_accuracies(rewards: Tensor, levels: Tensor) -> Tensor:
    """Share of each example's (positive, negative) pairs in which the positive's reward is higher.

    A tie does not count, as in TRL: with equal policy and reference the accuracy is 0. With one
    positive and one negative it is TRL's `rewards/accuracies`.

    Args:
        rewards: [B, C], nats; ignored at padding.
        levels: integer [B, C].

    Returns:
        Float [B] in [0, 1]; NaN where an example has no such pair.
    """
    positives, negatives = set_masks(levels)
    ascending = torch.where(negatives, rewards, torch.inf).sort(-1).values
    n_lower = torch.searchsorted(ascending, rewards.contiguous())  # [B, C] negatives below
    n_right = torch.where(positives, n_lower, 0).sum(-1)
    return n_right / (positives.sum(-1) * negatives.sum(-1))


def boundaries(levels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Masks (this level, all lower levels), two [B, C], for every level but the batch's lowest.

    An example where either mask is empty has no boundary at this level.
    """
    present = levels[levels != PADDING_LEVEL].unique().tolist()  # ascending
    for level in present[1:]:
        yield levels == level, (levels < level) & (levels != PADDING_LEVEL)


def argsort_by(*keys: Tensor) -> Tensor:
    """Column indices [B, C] that sort every row ascending by the first key, ties by the next.

    The sort is stable: columns that tie in all keys keep their order.
    """
    order = keys[-1].argsort(dim=-1, stable=True)
    for key in reversed(keys[:-1]):
        order = order.gather(-1, key.gather(-1, order).argsort(dim=-1, stable=True))
    return order
