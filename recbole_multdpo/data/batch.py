"""The one batch type: contexts x candidates with preference levels."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

PADDING_LEVEL = -1
NEGATIVE_LEVEL = 0
POSITIVE_LEVEL = 1  # the lowest level that counts as positive; more preferred items stand higher


@dataclass(frozen=True)
class SetwiseBatch:
    """B contexts, each with a prompt and up to C candidate items.

    Attributes:
        user_ids: long [B], RecBole's inner user ids (the context's name in messages and logs).
        prompt_ids: long [B, P], token ids, right padded.
        prompt_lengths: long [B], valid tokens of each prompt, at least 1.
        candidates: long [B, C], RecBole's inner item ids; 0 is padding.
        levels: long [B, C], preference level: higher is better, 0 negative, -1 padding.
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

    def slice(self, start: int, stop: int) -> SetwiseBatch:
        """Contexts `start:stop`, for gradient accumulation; the padding is kept."""
        return SetwiseBatch(**{f.name: getattr(self, f.name)[start:stop] for f in fields(self)})
