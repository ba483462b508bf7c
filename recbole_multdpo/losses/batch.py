"""The batch type: examples x candidates with preference levels."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

PADDING_LEVEL = -1
LOWER_NEGATIVE_LEVEL = -2  # negatives ranked below those of level 0; -1 is padding
NEGATIVE_LEVEL = 0
POSITIVE_LEVEL = 1  # the lowest positive level; more preferred items have higher levels
MAX_PADDING = 0.1  # share of a bucket's tokens


@dataclass(frozen=True)
class SetwiseBatch:
    """B examples, each with a prompt and up to C candidate items.

    Attributes:
        user_ids: long [B], RecBole's inner user ids, which identify examples in messages and logs;
            0 for a filler that evens out the processes' shares and has weight 0.
        prompt_ids: long [B, P], token ids, right padded.
        prompt_lengths: long [B], valid tokens of each prompt, at least 1.
        candidates: long [B, C], RecBole's inner item ids; 0 is padding.
        levels: long [B, C], preference level: higher is better, >= 1 positive, 0 negative, -2
            negatives ranked below those, -1 padding.
    """

    user_ids: Tensor
    prompt_ids: Tensor
    prompt_lengths: Tensor
    candidates: Tensor
    levels: Tensor

    def __len__(self) -> int:
        return len(self.user_ids)

    def to(self, device: torch.device | str) -> SetwiseBatch:
        """Copy of the batch with every tensor on `device`."""
        return SetwiseBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def select(self, rows: Tensor) -> SetwiseBatch:
        """The examples `rows` (long [R]), in that order, with the batch's padding."""
        return SetwiseBatch(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def length_buckets(lengths: Tensor, *, max_rows: int, max_tokens: int) -> list[Tensor]:
    """Group examples of similar length, the longest first, to limit padding.

    Args:
        lengths: long [B], tokens of each example.
        max_rows: examples per bucket, at most.
        max_tokens: tokens per bucket with padding, at most; no more than `MAX_PADDING` of them are
            padding. 0 for neither limit. A longer example is a bucket of its own.

    Returns:
        Row indices of each bucket, long; every row is in exactly one.
    """
    order = lengths.argsort(descending=True, stable=True)
    if not max_tokens:
        return list(order.split(max_rows))
    buckets, start = [], 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        n_rows = min(max(max_tokens // longest, 1), max_rows)
        filled = lengths[order[start : start + n_rows]].cumsum(0)
        padded = longest * torch.arange(1, len(filled) + 1, device=lengths.device)
        # lengths descend, so the share of padding grows with every example
        stop = start + int((filled >= (1 - MAX_PADDING) * padded).sum())
        buckets.append(order[start:stop])
        start = stop
    return buckets
