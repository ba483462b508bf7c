"""What levels say about an example: its two sets, its boundaries between levels, its order.

`levels` is integer [B, C] throughout: higher is better, 1 and more positive, 0 negative, −2
negatives to be ranked below those, −1 padding, which is no level.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from recbole_multdpo.losses.batch import PADDING_LEVEL, POSITIVE_LEVEL


def set_masks(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Boolean masks [B, C] of the positives (level >= 1) and of all negatives."""
    return levels >= POSITIVE_LEVEL, (levels < POSITIVE_LEVEL) & (levels != PADDING_LEVEL)


def set_means(values: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of values [B, C] over each example's positives and over its negatives: two [B].

    An example without positives (negatives) has NaN there. Applied to `rewards`, the difference of
    the two is the margin that training should widen.
    """
    positives, negatives = (
        torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1) for mask in set_masks(levels)
    )
    return positives, negatives


def boundaries(levels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Masks (group, all lower groups), two [B, C], for every level but the lowest in the batch.

    Either may be empty in an example that lacks the level or has nothing below it; such an example
    has no boundary there.
    """
    present = levels[levels != PADDING_LEVEL].unique().tolist()  # ascending
    for level in present[1:]:
        yield levels == level, (levels < level) & (levels != PADDING_LEVEL)


def sorted_by(*keys: Tensor) -> Tensor:
    """Column indices [B, C] that sort every row ascending by the first key, ties by the next.

    Where all keys tie, the order of the columns stays.
    """
    order = keys[-1].argsort(dim=-1, stable=True)
    for key in reversed(keys[:-1]):
        order = order.gather(-1, key.gather(-1, order).argsort(dim=-1, stable=True))
    return order
