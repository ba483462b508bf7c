"""Set-wise losses: every positive above every negative, no order inside either set.

Equation numbers are those of the Mult-DPO paper. The interface of a loss function is described in
`recbole_multdpo.losses.preference`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_multdpo.losses.plackett_luce import DEFAULT_NODES, set_preference_logp
from recbole_multdpo.losses.sets import boundaries, set_masks


def sft(logps: Tensor, levels: Tensor, beta: float) -> Tensor:
    """Supervised fine-tuning: mean over the positives of −log π_θ(y|x); ignores `beta`."""
    positives, _ = set_masks(levels)
    return -torch.where(positives, logps, 0.0).sum(-1) / positives.sum(-1)


def s_dpo(logratios: Tensor, levels: Tensor, beta: float) -> Tensor:
    """Softmax-DPO: −log σ(s_w − LSE_Q(s)), one positive w against all negatives Q.

    Chen et al. 2024 (NeurIPS). Computed as log σ of a difference, which stays finite on
    well-separated sets; exp followed by log would not.
    """
    positives, negatives = set_masks(levels)
    s = beta * logratios
    positive = torch.where(positives, s, 0.0).sum(-1)
    return -F.logsigmoid(positive - torch.where(negatives, s, -math.inf).logsumexp(-1))


def mult_dpo(logratios: Tensor, levels: Tensor, beta: float) -> Tensor:
    """Mult-DPO (14): −Σ_P s_y + N · LSE_{P∪Q}(s) − log N!, the constant included.

    It equals −log(N! Π_P p_y) with p_y = w_y / W, an upper bound on the exact `pl_dpo` (Theorem 1)
    with a gap of at most (N − 1) log(1 + W⁺/W⁻) (Corollary 1). With one positive it is `s_dpo`.
    """
    return -multinomial_logp(beta * logratios, *set_masks(levels))


def mult2_dpo(logratios: Tensor, levels: Tensor, beta: float) -> Tensor:
    """Mult2-DPO (24): Mult-DPO of every level against all lower ones, summed over the boundaries.

    With two levels it is `mult_dpo`. A level that an example lacks adds nothing.
    """
    s = beta * logratios
    terms = [multinomial_logp(s, group, lower) for group, lower in boundaries(levels)]
    return -torch.stack(terms).sum(0)


def pl_dpo(
    logratios: Tensor, levels: Tensor, beta: float, *, pl_nodes: int = DEFAULT_NODES
) -> Tensor:
    """PL-DPO (16): −log P_PL, the marginal Plackett-Luce likelihood (8), exact for any N."""
    return -set_preference_logp(beta * logratios, *set_masks(levels), pl_nodes)


def pl2_dpo(
    logratios: Tensor, levels: Tensor, beta: float, *, pl_nodes: int = DEFAULT_NODES
) -> Tensor:
    """Multi-level PL-DPO (25): −log likelihood of every level ranking above all lower ones.

    The likelihood factorises over the boundaries (22). With two levels it is `pl_dpo`.
    """
    s = beta * logratios
    terms = [set_preference_logp(s, group, lower, pl_nodes) for group, lower in boundaries(levels)]
    return -torch.stack(terms).sum(0)


def multinomial_logp(s: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """log P_MN (10) = log(N! Π_P p_y), [B] in nats; 0, without gradient, where a set is empty.

    Args:
        s: [B, C], finite everywhere.
        positives: bool [B, C].
        negatives: bool [B, C].
    """
    usable = positives.any(-1) & negatives.any(-1)
    # an empty softmax has a NaN gradient, so masked rows take all columns
    candidates = positives | negatives | ~usable[:, None]
    # one log-softmax: subtracting N · LSE from Σ s would lose N · |s| · 1e-7 in float32
    log_p = torch.where(candidates, s, -math.inf).log_softmax(-1)
    n_positives = positives.sum(-1).to(log_p.dtype)
    logp = torch.where(positives, log_p, 0.0).sum(-1) + torch.lgamma(n_positives + 1)
    return torch.where(usable, logp, 0.0)
