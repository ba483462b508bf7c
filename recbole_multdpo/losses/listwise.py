"""List-wise losses: Plackett-Luce likelihoods of a full order of the positives.

Set-wise preferences do not order the positives, so these losses order them by level and, inside a
level, by `list_order`. 'policy' sorts by the policy's current scores, detached: the target is the
ranking closest to the model's own. 'sampled' keeps the order of the candidates, which is random
with history_split=random and chronological with temporal. The negatives come last, unordered.

The interface of a loss function is described in `recbole_multdpo.losses.preference`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from recbole_multdpo.losses.pairwise import per_token
from recbole_multdpo.losses.sets import LOWER_NEGATIVE_LEVEL, PADDING_LEVEL, argsort_by, set_masks

ListOrder = Literal["policy", "sampled"]


def pro(
    logps: Tensor,
    levels: Tensor,
    beta: float,
    *,
    lengths: Tensor,
    list_order: ListOrder = "policy",
    pro_sft_weight: float = 0.05,
) -> Tensor:
    """PRO: Σ_{k<=N} −log [e^{βp_k} / Σ_{i>=k} e^{βp_i}] − α N² log π_θ(y_1|x); no reference.

    Song et al. 2024 (AAAI), Eq. 7 and 9: p is the log-probability averaged over tokens. The first
    item of the list also gets a supervised term, weighted by α = `pro_sft_weight` and the square of
    the number of contrasts, here N. β is 1 in the paper, whose temperatures need a reward model.
    """
    scores = per_token(logps, lengths)
    order = _order(scores, levels, list_order)
    first = logps.gather(-1, order[:, :1])[:, 0]
    n_positives = set_masks(levels)[0].sum(-1)
    ranking = _ordered_plackett_luce(beta * scores, levels, order, n_positives)
    return ranking - pro_sft_weight * n_positives.square() * first


def kpo(
    logratios: Tensor,
    levels: Tensor,
    beta: float,
    *,
    list_order: ListOrder = "policy",
    kpo_k: int = 0,
) -> Tensor:
    """KPO: Σ_{k<=K} −log [w_k / Σ_{i>=k} w_i], the first K ranks of a Plackett-Luce ranking.

    Cai et al. 2025 (ACL Findings). K is `kpo_k`, at most the number of positives; 0 means all of
    them. The paper's K also varies with the number of relevant candidates of a query.
    """
    s = beta * logratios
    order = _order(s, levels, list_order)
    n_positives = set_masks(levels)[0].sum(-1)
    n_ranked = n_positives.clamp(max=kpo_k) if kpo_k else n_positives
    return _ordered_plackett_luce(s, levels, order, n_ranked)


def _order(scores: Tensor, levels: Tensor, list_order: ListOrder) -> Tensor:
    """Column indices [B, C], best first: positives, negatives, padding."""
    downwards = torch.where(levels == PADDING_LEVEL, 1 - LOWER_NEGATIVE_LEVEL, -levels)
    if list_order == "sampled":
        return argsort_by(downwards)
    return argsort_by(downwards, -scores.detach())


def _ordered_plackett_luce(s: Tensor, levels: Tensor, order: Tensor, n_ranked: Tensor) -> Tensor:
    """Σ_{k <= n_ranked} −log softmax of rank k among ranks >= k, [B].

    Args:
        s: [B, C], scores, 0 at padding.
        levels: integer [B, C].
        order: long [B, C], column of each rank.
        n_ranked: long [B], number of ranks in the sum.
    """
    s = s.gather(-1, order)
    n_candidates = (levels != PADDING_LEVEL).sum(-1)
    ranks = torch.arange(s.shape[1], device=s.device)
    ranked = ranks[: int(n_ranked.max())] < n_ranked[:, None]  # [B, K]
    remaining = ranks >= ranks[: ranked.shape[1], None]  # [K, C]
    remaining = remaining & (ranks < n_candidates[:, None])[:, None]  # [B, K, C]
    # a masked rank may have nothing left to choose from, and an empty softmax has a NaN gradient
    remaining = remaining | ~ranked[:, :, None]
    log_p = torch.where(remaining, s[:, None], -math.inf).log_softmax(-1)
    return -torch.where(ranked, log_p.diagonal(dim1=-2, dim2=-1), 0.0).sum(-1)
