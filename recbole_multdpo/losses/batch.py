"""The one batch type: examples x candidates with preference levels."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

PADDING_LEVEL = -1
LOWER_NEGATIVE_LEVEL = -2  # negatives to be ranked below the other ones; -1 is no level
NEGATIVE_LEVEL = 0
MAX_PADDING = 0.1  # share of a group of examples
POSITIVE_LEVEL = 1  # the lowest level that counts as positive; more preferred items stand higher


@dataclass(frozen=True)
class SetwiseBatch:
    """B examples, each with a prompt and up to C candidate items.

    Attributes:
        user_ids: long [B], RecBole's inner user ids (the example's name in messages and logs); 0
            for an example that only fills up a process's share and must weigh nothing.
        prompt_ids: long [B, P], token ids, right padded.
        prompt_lengths: long [B], valid tokens of each prompt, at least 1.
        candidates: long [B, C], RecBole's inner item ids; 0 is padding.
        levels: long [B, C], preference level: higher is better, 1 and more positive, 0 negative, -2
            negatives below those, -1 padding.
    """

    user_ids: Tensor
    prompt_ids: Tensor
    prompt_lengths: Tensor
    candidates: Tensor
    levels: Tensor

    def __len__(self) -> int:
        return len(self.user_ids)

    def to(self, device: torch.device | str) -> SetwiseBatch:
        """The same batch with every tensor on `device`."""
        return SetwiseBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def select(self, rows: Tensor) -> SetwiseBatch:
        """The examples `rows` (long [R]), in that order; the padding is kept."""
        return SetwiseBatch(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def length_buckets(lengths: Tensor, *, max_rows: int, max_tokens: int) -> list[Tensor]:
    """Examples grouped by length, the longest first, so that little of a group is padding.

    Args:
        lengths: long [B], tokens of each example.
        max_rows: examples per group, at most.
        max_tokens: examples times the longest of them, at most, and no more than `MAX_PADDING` of
            that is padding; 0 for no limit of either kind. A longer example is a group of its own.

    Returns:
        Row indices of each group, long; together every row once.
    """
    order = lengths.argsort(descending=True, stable=True)
    if not max_tokens:
        return list(order.split(max_rows))
    groups, start = [], 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        n_rows = min(max(max_tokens // longest, 1), max_rows)
        filled = lengths[order[start : start + n_rows]].cumsum(0)
        padded = longest * torch.arange(1, len(filled) + 1, device=lengths.device)
        # examples become shorter, so that the share of padding grows with each of them
        stop = start + int((filled >= (1 - MAX_PADDING) * padded).sum())
        groups.append(order[start:stop])
        start = stop
    return groups
