"""Prompts, and the batch type: examples x candidates with preference levels."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompts:
    """Token ids of B prompts, with their lengths.

    Attributes:
        ids: long [B, P], right padded; padding is never attended.
        lengths: long [B], valid tokens of each prompt, at least 1: a candidate's first token is
            predicted from the prompt's last one.

    Raises:
        ValueError: a length is not in 1 … P. Only CPU tensors are checked; others would need a
            synchronisation.
    """

    ids: Tensor
    lengths: Tensor

    def __post_init__(self) -> None:
        is_on_host = self.lengths.device.type == "cpu"
        if is_on_host and not ((self.lengths >= 1) & (self.lengths <= self.ids.shape[1])).all():
            raise ValueError(
                f"lengths of prompts must be from 1 to {self.ids.shape[1]}, the width of their ids."
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        """Number of columns of `ids`."""
        return self.ids.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.ids.device

    def to(self, device: torch.device | str) -> Prompts:
        """Copy of the prompts on `device`."""
        return Prompts(self.ids.to(device), self.lengths.to(device))

    def select(self, rows: Tensor) -> Prompts:
        """The prompts `rows` (long [R], or a mask [B]), in that order, with the same padding."""
        return Prompts(self.ids[rows], self.lengths[rows])

    def split(self, size: int) -> list[Prompts]:
        """Split into views of `size` prompts each; the last one may be smaller."""
        pairs = zip(self.ids.split(size), self.lengths.split(size), strict=True)
        return [Prompts(ids, lengths) for ids, lengths in pairs]

    def trimmed(self) -> Prompts:
        """Remove columns that are padding in every row; synchronises with the device."""
        return Prompts(self.ids[:, : int(self.lengths.max())], self.lengths)


@dataclass(frozen=True)
class SetwiseBatch:
    """B examples, each with a prompt and up to C candidate items.

    Attributes:
        user_ids: long [B], RecBole's inner user ids, which identify examples in messages and logs;
            0 for a filler that evens out the processes' shares and has weight 0.
        prompts: one per example.
        candidates: long [B, C], RecBole's inner item ids; 0 is padding.
        levels: long [B, C], preference level: higher is better, >= 1 positive, 0 negative, -2
            negatives ranked below those, -1 padding, or an item that only the teacher weighs.
        teacher_probs: float32 [B, C], the teacher's probability of each candidate; a row sums to 1,
            or is 0 where the teacher has no opinion. None without a teacher.
    """

    user_ids: Tensor
    prompts: Prompts
    candidates: Tensor
    levels: Tensor
    teacher_probs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.user_ids)

    def to(self, device: torch.device | str) -> SetwiseBatch:
        """Copy of the batch with every tensor on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: Any = {k: v if v is None else v.to(device) for k, v in values.items()}
        return SetwiseBatch(**moved)

    def select(self, rows: Tensor) -> SetwiseBatch:
        """The examples `rows` (long [R]), in that order, with the batch's padding."""
        return SetwiseBatch(
            self.user_ids[rows],
            self.prompts.select(rows),
            self.candidates[rows],
            self.levels[rows],
            None if self.teacher_probs is None else self.teacher_probs[rows],
        )


def length_buckets(
    lengths: Tensor, *, max_rows: int, max_tokens: int, part_tokens: float
) -> list[Tensor]:
    """Group examples of similar length, the longest first, at the least cost.

    A bucket costs its examples times the longest of them, which is its tokens with padding, and
    `part_tokens` on top. The sum over the buckets is the smallest possible (dynamic programming
    over the sorted lengths, in O(B^2)).

    Args:
        lengths: long [B], tokens of each example.
        max_rows: examples per bucket, at most.
        max_tokens: tokens per bucket with padding, at most; 0 for no limit. A longer example is a
            bucket of its own.
        part_tokens: cost of one more bucket, in tokens: cutting a bucket of the result in two saves
            no more than that in padding.

    Returns:
        Row indices of each bucket, long, on the device of the lengths; every row is in exactly one.
    """
    order = lengths.argsort(descending=True, stable=True)
    longest = lengths[order].tolist()
    # of the first n examples in this order: the least cost, and the start of their last bucket
    costs, starts = [0.0], [0]
    for stop in range(1, len(longest) + 1):
        cost, start = min(
            (costs[start] + longest[start] * (stop - start) + part_tokens, start)
            for start in range(max(stop - max_rows, 0), stop)
            if not max_tokens or stop - start == 1 or longest[start] * (stop - start) <= max_tokens
        )
        costs.append(cost)
        starts.append(start)
    buckets, stop = [], len(longest)
    while stop:
        buckets.append(order[starts[stop] : stop])
        stop = starts[stop]
    return buckets[::-1]
