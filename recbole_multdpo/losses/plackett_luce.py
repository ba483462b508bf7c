"""The exact Plackett-Luce probability that every positive ranks above every negative.

This probability is a sum over all N! orders of the positives (8). It is also a one-dimensional
integral (Ma et al. 2021, arXiv 2006.05067): give every item an exponential clock of rate w; the
event is that all positives ring before the first negative. With a_i = s_i − LSE_Q(s),

    P_PL = ∫ exp f(x) dx,    f(x) = x − e^x + Σ_{i∈P} log(1 − exp(−e^{x + a_i})).

f is concave and its exponential entire, so the trapezoid rule with K nodes over the window where f
is within T of its maximum converges exponentially: the error is about e^{−T}, T = π√K − 1.75. The
cost is O(N K) per example.

The gradient comes out of the same pass. With p_k the share of node k in the sum,

    ∂ log P_PL / ∂a_i = Σ_k p_k ρ(e^{x_k + a_i}) ∈ [0, 1],    ρ(z) = z / (e^z − 1).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

DEFAULT_NODES = 48
# Bisection steps. A hundredth of the window's width is accurate enough for its ends.
MODE_STEPS, WINDOW_STEPS = 14, 10
# Below this, the series of log(1 − exp(−e^y)) is exact to float64's precision.
SERIES_BELOW = -10.0


def set_preference_logp(
    s: Tensor, positives: Tensor, negatives: Tensor, nodes: int = DEFAULT_NODES
) -> Tensor:
    """log P_PL(every positive above every negative), exact up to the quadrature error.

    Args:
        s: [B, C], float32 or float64, finite everywhere.
        positives: bool [B, C].
        negatives: bool [B, C].
        nodes: K of the quadrature.

    Returns:
        [B] in nats; 0, without gradient, where either set is empty.
    """
    usable = positives.any(-1) & negatives.any(-1)
    # the logarithm of an empty sum has a NaN gradient, so masked rows take all columns
    negatives = negatives | ~usable[:, None]
    log_negative_mass = torch.where(negatives, s, -math.inf).logsumexp(-1, keepdim=True)
    width = max(int(positives.sum(-1).max()), 1)
    columns = positives.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[:, :width]
    a = s.gather(-1, columns) - log_negative_mass  # [B, N]
    logp: Tensor = _LogIntegral.apply(a, positives.gather(-1, columns), nodes)
    return torch.where(usable, logp, 0.0)


class _LogIntegral(torch.autograd.Function):
    """log ∫ exp f(x) dx for a [B, N], mask [B, N]; forward also computes the gradient."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, mask: Tensor, nodes: int) -> Tensor:
        x, step = _nodes(a, mask, nodes)  # [B, K], [B]
        f = _log_integrand(x, a, mask)
        # the constant that `_log_integrand` leaves out
        offset = torch.where(mask, a.clamp(max=0), 0.0).sum(-1)
        shares = f.softmax(-1)
        slopes = torch.where(mask[:, :, None], _rho(x[:, None] + a[:, :, None]), 0.0)  # [B, N, K]
        ctx.save_for_backward((slopes @ shares[:, :, None])[:, :, 0])
        return f.logsumexp(-1) + step.log() + offset

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad[:, None] * gradient, None, None


def _log_integrand(x: Tensor, a: Tensor, mask: Tensor) -> Tensor:
    """f at x [B, K] minus the constant Σ min(a_i, 0): [B, K].

    A positive far below the negatives adds about x + a_i. Its a_i may be in the thousands; adding
    it would lose the differences between nodes to rounding.
    """
    y = x[:, None] + a[:, :, None]  # [B, N, K]
    z = y.exp()  # inf far above the negatives, where the logarithm below is 0
    a = a[:, :, None]
    series = x[:, None] + a.clamp(min=0) - z / 2 + z.square() / 24
    terms = torch.where(y < SERIES_BELOW, series, (-torch.expm1(-z)).log() - a.clamp(max=0))
    return x - x.exp() + torch.where(mask[:, :, None], terms, 0.0).sum(1)


def _rho(y: Tensor) -> Tensor:
    """ρ(e^y) = e^y / (exp(e^y) − 1), the slope of log(1 − exp(−e^y)); 1 far below 0, 0 far above.

    The clamp keeps numerator and denominator within float32's range; its effect on the value is
    below float32's precision.
    """
    z = y.clamp(-80.0, 4.4).exp()
    return z / torch.expm1(z)


def _nodes(a: Tensor, mask: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes [B, K] over the window in which f is within T of its maximum, and their spacing [B].

    Brackets: f'(x) = 1 − e^x + Σ ρ with 0 <= ρ <= 1 puts the mode between 0 and log(1 + N). To its
    left f falls by at least −x − 1, to its right by at least d²/2 over a distance d.
    """
    drop = math.pi * math.sqrt(nodes) - 1.75
    low = a.new_zeros(len(a), 1)
    high = mask.sum(-1, keepdim=True).to(a.dtype).log1p()
    for _ in range(MODE_STEPS):
        middle = (low + high) / 2
        slopes = torch.where(mask, _rho(middle + a), 0.0).sum(-1, keepdim=True)
        rising = 1 - middle.exp() + slopes > 0
        low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
    mode = (low + high) / 2
    level = _log_integrand(mode, a, mask) - drop  # [B, 1]
    # both ends at once: `outside` is beyond the window, `inside` within it
    inside = mode.expand(-1, 2)
    outside = torch.cat([torch.full_like(mode, -drop - 1), mode + math.sqrt(2 * drop)], -1)
    for _ in range(WINDOW_STEPS):
        middle = (inside + outside) / 2
        within = _log_integrand(middle, a, mask) > level
        inside = torch.where(within, middle, inside)
        outside = torch.where(within, outside, middle)
    left, right = outside[:, :1], outside[:, 1:]
    x = left + (right - left) * torch.linspace(0, 1, nodes, dtype=a.dtype, device=a.device)
    return x, (right - left)[:, 0] / (nodes - 1)
