"""Top-K by scoring every item of the catalogue: the reference implementation of `best_first`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.scoring.topk import TopK, stable_topk


@torch.no_grad()
def exhaustive_topk(
    score: Callable[[Prompts, Tensor], Tensor],
    prompts: Prompts,
    excluded: Tensor | None,
    k: int,
    *,
    n_items: int,
    items_per_chunk: int = 512,
    item_bias: Tensor | None = None,
) -> TopK:
    """Find the k items of highest log π(item | prompt) for each of B users by scoring every item.

    Args:
        score: `(prompts, candidates [B, C]) -> [B, C]`, nats, for example a packed or padded scorer
            bound to a model.
        prompts: the prompts of the B users.
        excluded: bool [B, n_items], items that must not be ranked, or None.
        k: items per user.
        n_items: rows of the item table, including the padding item 0.
        items_per_chunk: candidates per call of `score`.
        item_bias: [B, n_items], nats, added to the scores; None for no bias.

    Returns:
        `TopK` by the same rules as `TrieSearch`; `expanded` is 0.
    """
    n_users, device = len(prompts), prompts.device
    catalogue = torch.arange(1, n_items, device=device).expand(n_users, -1)
    chunks = [score(prompts, part) for part in catalogue.split(items_per_chunk, dim=1)]
    padding_item = chunks[0].new_full((n_users, 1), -math.inf)
    scores = torch.cat([padding_item, *chunks], dim=1)  # [B, n_items]
    if item_bias is not None:
        scores = scores + item_bias
    if excluded is not None:
        scores = scores.masked_fill(excluded, -math.inf)
    items, scores = stable_topk(scores, k)
    return TopK(items, scores, torch.zeros(n_users, dtype=torch.long, device=device))
