"""The gap between Mult-DPO and the exact set-wise loss, and its theoretical bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_multdpo.losses.plackett_luce import set_preference_logp
from recbole_multdpo.losses.preference import rewards
from recbole_multdpo.losses.sets import boundaries, set_masks
from recbole_multdpo.losses.setwise import multinomial_logp

NODES = 96  # quadrature nodes of the exact loss: an error of 1e-12 in float64


@dataclass(frozen=True)
class Bounds:
    """Both losses of each example and the bounds on their gap; float64 [B], nats, no gradient.

    0 <= sorted_lower <= gap <= sorted_upper <= corollary.

    Attributes:
        multinomial: L_MN (14), with levels L_SMN (24).
        exact: L_PL (16), with levels (25).
        gap: L_MN − L_PL.
        sorted_lower: Σ_{n=2..N} log[W / (W − prefix_{n−1})] with the positives' weights ascending.
        sorted_upper: the same with the weights descending.
        corollary: (N − 1) log(1 + W⁺/W⁻) of Corollary 1 (18); with levels its sum over the
            boundaries, Corollary 2 (26).
        log_positive_mass: log W⁺ of the positives of all levels, up to a constant per example.
        log_negative_mass: log W⁻ of the negatives, up to the same constant.
        n_positives: N, integer.
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
    """Losses and bounds of examples with at least one positive and one negative each.

    Args:
        policy_logps: [B, C] log π_θ(y|x), nats.
        reference_logps: [B, C] log π_ref(y|x), nats.
        levels: integer [B, C], as in `preference_loss`.
        beta: as in `preference_loss`.
        use_levels: sum over the boundaries between levels, as in Mult2-DPO, instead of treating
            all positives as one set.
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

    The remaining mass is summed from the end instead of subtracted from W: subtracting nearly equal
    numbers would lose precision.
    """
    # absent ones sort to one end: they have no mass and are masked below
    ordered = torch.where(positives, s, -math.inf).sort(-1, descending=descending).values
    masses = torch.cat([ordered, _log_mass(s, negatives)[:, None]], -1)
    remaining = masses.flip(-1).logcumsumexp(-1).flip(-1)[:, :-1]
    total = remaining[:, :1]  # log W
    return torch.where(ordered.isinf(), 0.0, total - remaining).sum(-1)


def _log_mass(s: Tensor, mask: Tensor) -> Tensor:
    """log Σ exp(s) over the masked candidates, [B]; −inf for an empty set."""
    return torch.where(mask, s, -math.inf).logsumexp(-1)
