"""Set-wise preference losses: one small function per loss, one table that states what each needs.

Equation numbers are those of the Mult-DPO paper. A context has candidates C = P ∪ Q, positives P
with N = |P| and negatives Q, and the log-ratio of a candidate is

    logratio_y = log π_θ(y|x) − log π_ref(y|x),    s_y = β · logratio_y,    w_y = exp(s_y)      (13)

with log π the log-probability of the item's whole text (summed over tokens, terminator included,
nats).

A loss function takes `(logratios [B, C], levels [B, C], beta, **options)` and returns [B]. It may
rely on what `preference_loss` has checked and prepared: log-ratios are float32 or float64 and zero
at padding, every context holds the positives and negatives that the loss's entry in `LOSSES` asks
for. Losses without a reference receive log π_θ in place of the log-ratio. Options are keyword-only
parameters.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_multdpo.data.batch import NEGATIVE_LEVEL, PADDING_LEVEL, POSITIVE_LEVEL
from recbole_multdpo.errors import ConfigError, DataError


@dataclass(frozen=True)
class Loss:
    """One preference loss and what it needs; the sampler and the trainer read it here.

    Attributes:
        function: `(logratios [B, C], levels [B, C], beta, **options) -> [B]`, nats.
        positives: 'one' or 'many' (one or more) per context.
        negatives: 'none' (those present are ignored), 'one', or 'many' (one or more) per context.
        needs_reference: whether log-ratios are taken against a reference model.
    """

    function: Callable[..., Tensor]
    positives: Literal["one", "many"]
    negatives: Literal["none", "one", "many"]
    needs_reference: bool

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the loss's own options."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def set_masks(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Boolean masks [B, C] of the positives (level >= 1) and of the negatives (level 0)."""
    return levels >= POSITIVE_LEVEL, levels == NEGATIVE_LEVEL


def sft(logps: Tensor, levels: Tensor, beta: float) -> Tensor:
    """Supervised fine-tuning: mean over the positives of −log π_θ(y|x); `beta` plays no part."""
    positives, _ = set_masks(levels)
    return -torch.where(positives, logps, 0.0).sum(-1) / positives.sum(-1)


def dpo(logratios: Tensor, levels: Tensor, beta: float) -> Tensor:
    """DPO (5): −log σ(s_w − s_l), one positive w and one negative l."""
    positives, negatives = set_masks(levels)
    s = beta * logratios
    gap = torch.where(positives, s, 0.0).sum(-1) - torch.where(negatives, s, 0.0).sum(-1)
    return -F.logsigmoid(gap)


def s_dpo(logratios: Tensor, levels: Tensor, beta: float) -> Tensor:
    """Softmax-DPO: −log σ(s_w − LSE_Q(s)), one positive w against all negatives Q.

    Written with log σ of a gap, not as exp followed by log: it stays finite on well-separated sets.
    """
    positives, negatives = set_masks(levels)
    s = beta * logratios
    positive = torch.where(positives, s, 0.0).sum(-1)
    return -F.logsigmoid(positive - torch.where(negatives, s, -math.inf).logsumexp(-1))


def mult_dpo(logratios: Tensor, levels: Tensor, beta: float) -> Tensor:
    """Mult-DPO (14): −Σ_P s_y + N · LSE_{P∪Q}(s) − log N!, the constant included.

    It is −log(N! Π_P p_y) with p_y = w_y / W, which lies above the exact −log P_PL (Theorem 1) by
    at most (N − 1) log(1 + W⁺/W⁻) (Corollary 1). With one positive it equals `s_dpo`.
    """
    positives, negatives = set_masks(levels)
    # log p_y by one log-softmax: subtracting N · LSE from Σ s instead would lose N · |s| · 1e-7 in
    # float32
    log_p = torch.where(positives | negatives, beta * logratios, -math.inf).log_softmax(-1)
    n_positives = positives.sum(-1).to(log_p.dtype)
    return -torch.where(positives, log_p, 0.0).sum(-1) - torch.lgamma(n_positives + 1)


LOSSES: dict[str, Loss] = {
    "sft": Loss(sft, positives="many", negatives="none", needs_reference=False),
    "dpo": Loss(dpo, positives="one", negatives="one", needs_reference=True),
    "s_dpo": Loss(s_dpo, positives="one", negatives="many", needs_reference=True),
    "mult_dpo": Loss(mult_dpo, positives="many", negatives="many", needs_reference=True),
}


def preference_loss(
    name: str,
    policy_logps: Tensor,
    reference_logps: Tensor | None,
    levels: Tensor,
    beta: float,
    **options: object,
) -> Tensor:
    """Loss of each context, constants included.

    Args:
        name: a key of `LOSSES`.
        policy_logps: [B, C] log π_θ(y|x), nats, summed over the item's tokens. bfloat16 and float16
            are raised to float32; float64 is kept.
        reference_logps: [B, C] log π_ref(y|x), likewise; ignored, and may be None, where the loss
            needs no reference.
        levels: integer [B, C], higher is better, 0 negative, −1 padding. Two-set losses treat every
            level >= 1 as positive. Values at padding, NaN and infinities included, touch neither
            the loss nor a gradient.
        beta: strength of the pull to the reference, > 0.
        **options: the loss's own options (`LOSSES[name].options`).

    Returns:
        [B] in nats, float32 or float64.

    Raises:
        ConfigError: unknown name or impossible beta.
        TypeError: an option that the loss does not have.
        ValueError: shapes differ, or the reference is missing.
        DataError: a context has too few or too many positives or negatives for this loss.
    """
    loss = _find(name)
    if not (math.isfinite(beta) and beta > 0):
        raise ConfigError(
            f"beta={beta} is not allowed: it must be a finite number > 0, such as 0.1 or 1."
        )
    for option in options:
        if option not in loss.options:
            known = ", ".join(loss.options) or "none"
            raise TypeError(f"loss {name!r} has no option {option!r}; its options: {known}.")
    if not loss.needs_reference:
        reference_logps = None
    elif reference_logps is None:
        raise ValueError(f"loss {name!r} needs reference_logps, got None.")
    _check_shapes(policy_logps, reference_logps, levels)
    _check_sets(name, loss, levels)
    return loss.function(_logratios(policy_logps, reference_logps, levels), levels, beta, **options)


def rewards(policy_logps: Tensor, reference_logps: Tensor, levels: Tensor, beta: float) -> Tensor:
    """Implicit rewards β · (log π_θ − log π_ref), [B, C] in nats, detached; 0 at padding."""
    return beta * _logratios(policy_logps.detach(), reference_logps.detach(), levels)


def set_means(values: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of values [B, C] over each context's positives and over its negatives: two [B].

    A context without positives (negatives) has NaN there. Applied to `rewards`, the difference of
    the two is the margin that training should widen.
    """
    positives, negatives = (
        torch.where(mask, values, 0.0).sum(-1) / mask.sum(-1) for mask in set_masks(levels)
    )
    return positives, negatives


def _find(name: str) -> Loss:
    """The entry of `LOSSES`, or an error that suggests the nearest name."""
    if name in LOSSES:
        return LOSSES[name]
    nearest = get_close_matches(name, LOSSES, n=1, cutoff=0.0)[0]
    raise ConfigError(
        f"loss={name!r} is unknown; did you mean {nearest!r}? Allowed: {', '.join(LOSSES)}."
    )


def _check_shapes(policy_logps: Tensor, reference_logps: Tensor | None, levels: Tensor) -> None:
    """All tensors must be [B, C]: broadcasting would hide a mistake."""
    shapes = {"policy_logps": policy_logps.shape, "levels": levels.shape}
    if reference_logps is not None:
        shapes["reference_logps"] = reference_logps.shape
    if levels.ndim != 2 or len(set(shapes.values())) > 1:
        found = ", ".join(f"{key} {list(shape)}" for key, shape in shapes.items())
        raise ValueError(f"expected equal shapes [contexts, candidates], got {found}.")


def _check_sets(name: str, loss: Loss, levels: Tensor) -> None:
    """Raise where a context's numbers of positives or negatives do not fit the loss."""
    positives, negatives = (mask.sum(-1) for mask in set_masks(levels))  # [B] each
    bad = ~_fits(positives, loss.positives) | ~_fits(negatives, loss.negatives)
    bad |= (levels < PADDING_LEVEL).any(-1)
    if not bad.any():
        return
    context = int(bad.nonzero()[0])
    amount = {"none": "any number of", "one": "exactly one", "many": "at least one"}
    raise DataError(
        f"context {context}: loss {name!r} needs {amount[loss.positives]} positive (level >= 1) "
        f"and {amount[loss.negatives]} negative (level 0), found {int(positives[context])} and "
        f"{int(negatives[context])} in levels {levels[context].tolist()} (-1 is padding; lower "
        "levels are not allowed). Sample contexts that fit the loss, or choose mult_dpo, which "
        "takes sets of any size."
    )


def _fits(count: Tensor, need: str) -> Tensor:
    """Whether set sizes [B] satisfy 'none' (no need), 'one' or 'many'."""
    if need == "one":
        return count == 1
    return count >= (1 if need == "many" else 0)


def _logratios(policy_logps: Tensor, reference_logps: Tensor | None, levels: Tensor) -> Tensor:
    """log π_θ − log π_ref [B, C] in float32 or better, 0 at padding; log π_θ without a reference.

    Padding is replaced before any arithmetic: NaN times a zero gradient would still be NaN.
    """
    valid = levels != PADDING_LEVEL
    dtype = torch.promote_types(policy_logps.dtype, torch.float32)
    if reference_logps is None:
        return torch.where(valid, policy_logps.to(dtype), 0.0)
    dtype = torch.promote_types(dtype, reference_logps.dtype)
    policy = torch.where(valid, policy_logps.to(dtype), 0.0)
    return policy - torch.where(valid, reference_logps.to(dtype), 0.0)
