"""Losses of an ordered list: Plackett-Luce likelihoods in which every positive has its place.

Preferences between sets have no order inside the positives, so it must come from somewhere: from
the levels first, and inside a level from `list_order`. 'policy' takes the present scores of the
policy, detached, so that the loss asks for the ranking which the model is nearest to; 'sampled'
keeps the order of the candidates, which is random with history_split=random and the order in time
with temporal. The negatives come last and have no order among each other.

For what a loss function receives and returns see `recbole_multdpo.losses.preference`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from recbole_multdpo.losses.batch import LOWER_NEGATIVE_LEVEL, PADDING_LEVEL
from recbole_multdpo.losses.pairwise import per_token
from recbole_multdpo.losses.sets import set_masks, sorted_by

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

    Song et al. 2024 (AAAI), Eq. 7 and 9: p is the log-probability averaged over tokens, the first
    of the list also gets a supervised term of weight α = `pro_sft_weight` times the square of the
    number of contrasts, which is N here. β is 1 in the paper, whose temperatures need a reward
    model.
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
    """KPO: Σ_{k<=K} −log [w_k / Σ_{i>=k} w_i], the first K places of a Plackett-Luce ranking.

    Cai et al. 2025 (ACL Findings). K is `kpo_k`, and all positives where that is 0 or more than
    there are: the paper's K differs between queries too, as the number of relevant candidates does.
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
        return sorted_by(downwards)
    return sorted_by(downwards, -scores.detach())


def _ordered_plackett_luce(s: Tensor, levels: Tensor, order: Tensor, n_ranked: Tensor) -> Tensor:
    """Σ_{k <= n_ranked} −log softmax of place k among places >= k, [B].

    Args:
        s: [B, C], scores, 0 at padding.
        levels: integer [B, C].
        order: long [B, C], column of every place.
        n_ranked: long [B], places that count.
    """
    s = s.gather(-1, order)
    n_candidates = (levels != PADDING_LEVEL).sum(-1)
    places = torch.arange(s.shape[1], device=s.device)
    ranked = places[: int(n_ranked.max())] < n_ranked[:, None]  # [B, K]
    rest = places >= places[: ranked.shape[1], None]  # [K, C]
    rest = rest & (places < n_candidates[:, None])[:, None]  # [B, K, C]
    # rows that do not count may have no rest at all; a softmax over nothing has no gradient
    rest = rest | ~ranked[:, :, None]
    log_p = torch.where(rest, s[:, None], -math.inf).log_softmax(-1)
    return -torch.where(ranked, log_p.diagonal(dim1=-2, dim2=-1), 0.0).sum(-1)
