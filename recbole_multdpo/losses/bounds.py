"""How far Mult-DPO lies above the exact set-wise loss, and what the theory says of that gap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_multdpo.losses.plackett_luce import set_preference_logp
from recbole_multdpo.losses.preference import rewards
from recbole_multdpo.losses.sets import boundaries, set_masks
from recbole_multdpo.losses.setwise import multinomial_logp

NODES = 96  # of the exact loss: an error of 1e-12 in float64


@dataclass(frozen=True)
class Bounds:
    """Both losses of each example and the bounds of their gap; float64 [B], nats, no gradient.

    0 <= sorted_lower <= gap <= sorted_upper <= corollary.

    Attributes:
        multinomial: L_MN (14), with levels L_SMN (24).
        exact: L_PL (16), with levels (25).
        gap: L_MN − L_PL.
        sorted_lower: Σ_{n=2..N} log[W / (W − prefix_{n−1})] with the positives' weights ascending.
        sorted_upper: the same with the weights descending.
        corollary: (N − 1) log(1 + W⁺/W⁻) of Corollary 1 (18); with levels Corollary 2 (26), the
            sum of that over the boundaries.
        log_positive_mass: log W⁺ of the positives, whatever their level, up to the constant that
            the log-ratios of an example leave open.
        log_negative_mass: log W⁻ of the negatives, likewise.
        n_positives: N, of integer type.
    """

    multinomial: Tensor
    exact: Tensor
    gap: Tensor
    sorted_lower: Tensor
    sorted_upper: Tensor
    corollary: Tensor
    log_positive_mass: Tensor
    log_negative_mass: Tensor
    n_positives: Tensor


def bounds(
    policy_logps: Tensor,
    reference_logps: Tensor,
    levels: Tensor,
    beta: float,
    *,
    use_levels: bool = False,
) -> Bounds:
    """Losses and bounds of examples that hold at least one positive and one negative.

    Args:
        policy_logps: [B, C] log π_θ(y|x), nats.
        reference_logps: [B, C] log π_ref(y|x), nats.
        levels: integer [B, C], as in `preference_loss`.
        beta: as in the loss.
        use_levels: sum over the boundaries between levels, as in Mult2-DPO, rather than take all
            positives for one set.
    """
    s = rewards(policy_logps.double(), reference_logps.double(), levels, beta)
    positives, negatives = set_masks(levels)
    pairs = list(boundaries(levels)) if use_levels else [(positives, negatives)]
    terms = [_boundary(s, group, lower) for group, lower in pairs]
    multinomial, exact, lower, upper, corollary = torch.stack(terms).sum(0).unbind()
    return Bounds(
        multinomial,
        exact,
        multinomial - exact,
        lower,
        upper,
        corollary,
        _log_mass(s, positives),
        _log_mass(s, negatives),
        positives.sum(-1),
    )


def _boundary(s: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """The five terms of one boundary, [5, B]; 0 where a set is empty."""
    usable = positives.any(-1) & negatives.any(-1)
    n_positives = positives.sum(-1)
    log_ratio = _log_mass(s, positives) - _log_mass(s, negatives)
    corollary = (n_positives - 1) * torch.logaddexp(log_ratio, torch.zeros_like(log_ratio))
    terms = [
        -multinomial_logp(s, positives, negatives),
        -set_preference_logp(s, positives, negatives, NODES),
        _sorted_bound(s, positives, negatives, descending=False),
        _sorted_bound(s, positives, negatives, descending=True),
        corollary,
    ]
    return torch.where(usable, torch.stack(terms), 0.0)


def _sorted_bound(s: Tensor, positives: Tensor, negatives: Tensor, *, descending: bool) -> Tensor:
    """Σ_{n=2..N} log[W / (W − w_(1) − … − w_(n−1))], the positives sorted by weight: [B].

    W less the first weights is the mass of what remains, which is summed from the end: no weight is
    ever subtracted from a larger one.
    """
    # the absent ones stand at one end, add nothing to what remains, and do not count
    ordered = torch.where(positives, s, -math.inf).sort(-1, descending=descending).values
    masses = torch.cat([ordered, _log_mass(s, negatives)[:, None]], -1)
    remaining = masses.flip(-1).logcumsumexp(-1).flip(-1)[:, :-1]
    total = remaining[:, :1]  # log W
    return torch.where(ordered.isinf(), 0.0, total - remaining).sum(-1)


def _log_mass(s: Tensor, mask: Tensor) -> Tensor:
    """log Σ exp(s) over a mask, [B]; −inf for an empty set."""
    return torch.where(mask, s, -math.inf).logsumexp(-1)
