"""Pairwise losses: functions of the difference between a better and a worse candidate.

The interface of a loss function is described in `recbole_multdpo.losses.preference`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_multdpo.losses.sets import PADDING_LEVEL, argsort_by, set_masks


def dpo(
    logratios: Tensor, levels: Tensor, beta: float, *, dpo_label_smoothing: float = 0.0
) -> Tensor:
    """DPO (5): −log σ(s_w − s_l), one positive w and one negative l.

    With ε = `dpo_label_smoothing` it is conservative DPO, −(1 − ε) log σ(Δ) − ε log σ(−Δ) with
    Δ = s_w − s_l: the preference is taken to be wrong with probability ε (Mitchell 2023, "A note on
    DPO with noisy preferences"; TRL's `label_smoothing`).
    """
    difference = beta * _difference(logratios, levels)
    loss = -F.logsigmoid(difference)
    if not dpo_label_smoothing:
        return loss
    return loss + dpo_label_smoothing * difference  # as −log σ(−Δ) = Δ − log σ(Δ)


def ipo(
    logratios: Tensor,
    levels: Tensor,
    beta: float,
    *,
    lengths: Tensor,
    ipo_length_average: bool = True,
) -> Tensor:
    """IPO: (h − 1/(2β))², h the log-ratio of the positive minus the log-ratio of the negative.

    Azar et al. 2024 (AISTATS), Eq. 17, with β for their τ. The paper takes log-ratios of whole
    answers (`ipo_length_average=False`). Averaged over an item's tokens, as the authors advised
    TRL, the target 1/(2β) does not depend on the items' lengths.
    """
    values = per_token(logratios, lengths) if ipo_length_average else logratios
    return (_difference(values, levels) - 1 / (2 * beta)).square()


def simpo(
    logps: Tensor, levels: Tensor, beta: float, *, lengths: Tensor, simpo_gamma: float = 1.0
) -> Tensor:
    """SimPO: −log σ(β (p_w − p_l) − γ), p the log-probability averaged over tokens; no reference.

    Meng et al. 2024 (NeurIPS), Eq. 6. γ is the target margin.
    """
    return -F.logsigmoid(beta * _difference(per_token(logps, lengths), levels) - simpo_gamma)


def dmpo(logratios: Tensor, levels: Tensor, beta: float) -> Tensor:
    """DMPO: −log σ(s_w − mean_Q s), one positive against the mean of the negatives.

    Bai et al. 2024 (arXiv 2405.16127).
    """
    positives, negatives = set_masks(levels)
    positive = torch.where(positives, logratios, 0.0).sum(-1)
    # divided before the sum, so that the sum cannot overflow
    negative = torch.where(negatives, logratios / negatives.sum(-1, keepdim=True), 0.0).sum(-1)
    return -F.logsigmoid(beta * (positive - negative))


def lipo_bt(
    logratios: Tensor, levels: Tensor, beta: float, *, lipo_pairs: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """LiPO with the pairwise logistic loss: Σ over pairs ψ_i > ψ_j of −log σ(s_i − s_j).

    Liu et al. 2025 (NAACL), their `DPO_BT`. The labels ψ are the levels. With two levels every
    positive is paired with every negative, as in the Mult-DPO paper's baseline.
    `lipo_pairs='mean'` divides the sum by the number of pairs.
    """
    losses, better = _pair_losses(beta * logratios, levels, _upper(levels))
    return _reduced(losses, better, lipo_pairs)


def lipo_lambda(
    logratios: Tensor, levels: Tensor, beta: float, *, lipo_pairs: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """LiPO-λ: `lipo_bt` with each pair weighted by the change in DCG if the two were swapped.

    Liu et al. 2025 (NAACL), Eq. 9: Δ_ij = |2^ψ_i − 2^ψ_j| · |1/log2(1 + τ_i) − 1/log2(1 + τ_j)|,
    with τ the rank (from 1) of a candidate by its current s; Δ has no gradient. Ties rank the lower
    level first: at the first step all s are 0, and equal ranks would give every pair weight 0.
    """
    s, upper = beta * logratios, _upper(levels)
    losses, better = _pair_losses(s, levels, upper)
    by_score = torch.where(levels != PADDING_LEVEL, -s.detach(), math.inf)
    ranks = argsort_by(by_score, levels).argsort(-1) + 1  # [B, C]
    gains = torch.exp2(levels.to(s.dtype))
    discounts = 1 / torch.log2(1 + ranks.to(s.dtype))
    delta = _pairs(gains, upper).abs() * _pairs(discounts, upper).abs()
    return _reduced(losses * delta, better, lipo_pairs)


def per_token(values: Tensor, lengths: Tensor) -> Tensor:
    """Means over tokens of values [B, C] that are sums over `lengths` [B, C] tokens."""
    return values / lengths.clamp(min=1)


def _difference(values: Tensor, levels: Tensor) -> Tensor:
    """Value of the one positive minus value of the one negative, [B]."""
    positives, negatives = set_masks(levels)
    positive = torch.where(positives, values, 0.0).sum(-1)
    return positive - torch.where(negatives, values, 0.0).sum(-1)


def _upper(levels: Tensor) -> Tensor:
    """Columns [B, N] of the candidates that are better than some other; rows end with others.

    The negatives of the lowest level, most of the candidates, are better than none.
    """
    valid = levels != PADDING_LEVEL
    lowest = torch.where(valid, levels, levels.max()).amin(-1, keepdim=True)
    is_upper = valid & (levels > lowest)
    width = int(is_upper.sum(-1).max())
    return is_upper.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :width]


def _pairs(values: Tensor, upper: Tensor) -> Tensor:
    """Differences v_i − v_j for i among `upper` [B, N] and all j: [B, N, C]."""
    return values.gather(-1, upper)[:, :, None] - values[:, None, :]


def _pair_losses(s: Tensor, levels: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """−log σ(s_i − s_j), and a mask of the pairs with i better than j: [B, N, C]."""
    valid = levels != PADDING_LEVEL
    better = (_pairs(levels, upper) > 0) & valid.gather(-1, upper)[:, :, None] & valid[:, None, :]
    return -F.logsigmoid(_pairs(s, upper)), better


def _reduced(losses: Tensor, better: Tensor, how: Literal["sum", "mean"]) -> Tensor:
    """Sum or mean over the pairs [B, N, C] that `better` marks: [B]."""
    total = torch.where(better, losses, 0.0).sum((-2, -1))
    return total / better.sum((-2, -1)) if how == "mean" else total
