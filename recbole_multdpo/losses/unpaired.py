"""KTO, an unpaired loss: it compares each candidate's reward with an estimate of the KL divergence.

The interface of a loss function is described in `recbole_multdpo.losses.preference`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_multdpo.losses.sets import set_masks


def kto(
    logratios: Tensor,
    levels: Tensor,
    beta: float,
    *,
    kl: Tensor,
    kto_desirable_weight: float = 1.0,
    kto_undesirable_weight: float = 1.0,
) -> Tensor:
    """KTO: λ_D Σ_P [1 − σ(β (r_y − z))] + λ_U (N/M) Σ_Q [1 − σ(β (z − r_y))], r the log-ratio.

    Ethayarajh et al. 2024 (ICML), Eq. 8, with z = `kl_estimate`, an estimate of KL(π_θ ‖ π_ref).
    The factor N/M makes λ_D and λ_U the weights of the whole sets: the paper keeps
    λ_D n_D / (λ_U n_U) between 1 and 3/2 for any numbers n of desirable and undesirable examples.
    """
    positives, negatives = set_masks(levels)
    z = beta * (logratios - kl)
    desirable = torch.where(positives, torch.sigmoid(-z), 0.0).sum(-1)
    undesirable = torch.where(negatives, torch.sigmoid(z), 0.0).sum(-1)
    balance = positives.sum(-1) / negatives.sum(-1)
    return kto_desirable_weight * desirable + kto_undesirable_weight * balance * undesirable


def kl_estimate(policy_logps: Tensor, reference_logps: Tensor) -> Tensor:
    """KTO's estimate of KL(π_θ ‖ π_ref): the mean log-ratio of mismatched pairs, at least 0.

    Args:
        policy_logps: [B], log π_θ(y'|x) of an item y' of another example, nats.
        reference_logps: [B], log π_ref(y'|x), nats.

    Returns:
        A scalar in nats, without gradient.
    """
    dtype = torch.promote_types(policy_logps.dtype, torch.float32)
    logratios = policy_logps.detach().to(dtype) - reference_logps.detach().to(dtype)
    return logratios.mean().clamp(min=0)
