"""Preference losses: `preference_loss` and the rewards.

Equation numbers are those of the Mult-DPO paper. An example has candidates C = P ∪ Q, positives P
with N = |P| and negatives Q with M = |Q|, and the log-ratio of a candidate is

    logratio_y = log π_θ(y|x) − log π_ref(y|x),    s_y = β · logratio_y,    w_y = exp(s_y)      (13)

with log π the log-probability of the item's whole text (summed over tokens, terminator included,
nats).

A loss function takes `(logratios [B, C], levels [B, C], beta, **options)` and returns [B], nats.
`preference_loss` has checked its input: log-ratios are float32 or float64 and zero at padding, and
every example has the positives and negatives that the loss's entry in `LOSSES` requires. Losses
without a reference receive log π_θ in place of the log-ratio. Keyword-only parameters are the
loss's options, each a setting of the same name, except `lengths` and `kl`, which are data.
"""

from __future__ import annotations

import math
from difflib import get_close_matches

import torch
from torch import Tensor

from recbole_multdpo.errors import ConfigError, DataError
from recbole_multdpo.losses import pairwise
from recbole_multdpo.losses.sets import LOWER_NEGATIVE_LEVEL, PADDING_LEVEL, set_masks
from recbole_multdpo.losses.table import DATA_PARAMETERS, LOSSES, Loss


def preference_loss(
    name: str,
    policy_logps: Tensor,
    reference_logps: Tensor | None,
    levels: Tensor,
    beta: float,
    *,
    lengths: Tensor | None = None,
    kl: Tensor | float | None = None,
    **options: object,
) -> Tensor:
    """Loss of each example, constants included.

    Args:
        name: a key of `LOSSES`.
        policy_logps: [B, C] log π_θ(y|x), nats, summed over the item's tokens. bfloat16 and float16
            are cast to float32; float64 is kept.
        reference_logps: [B, C] log π_ref(y|x), nats; ignored, and may be None, if the loss needs no
            reference.
        levels: integer [B, C], higher is better, 0 negative, −2 negatives below those, −1 padding.
            Two-set losses treat every level >= 1 as positive and the others as negative. Values at
            padding, NaN and infinities included, affect neither the loss nor its gradient.
        beta: strength of the pull to the reference, > 0.
        lengths: integer [B, C], tokens of each item, terminator included; ignored, and may be None,
            if the loss does not average over tokens.
        kl: the batch's `kl_estimate`, a scalar in nats; ignored by all losses but KTO.
        **options: the loss's own options (`LOSSES[name].options`).

    Returns:
        [B] in nats, float32 or float64.

    Raises:
        ConfigError: unknown name, or beta is not a finite number > 0.
        TypeError: an option that the loss does not have.
        ValueError: shapes differ, an item has no token, or the reference, the lengths or the KL
            estimate is missing.
        DataError: an example has too few or too many positives or negatives for this loss.
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
    data = _data_arguments(name, loss, lengths, kl)
    _check_shapes(policy_logps, reference_logps, levels, lengths if loss.needs_lengths else None)
    _check_sets(name, loss, levels)
    logratios = _logratios(policy_logps, reference_logps, levels)
    return loss(logratios, levels, beta, **data, **options)


def rewards(
    policy_logps: Tensor,
    reference_logps: Tensor | None,
    levels: Tensor,
    beta: float,
    lengths: Tensor | None = None,
) -> Tensor:
    """Implicit rewards β · (log π_θ − log π_ref), or β · log π_θ without a reference.

    Args:
        policy_logps: [B, C] log π_θ(y|x), nats.
        reference_logps: [B, C] log π_ref(y|x), nats; None for no reference.
        levels: integer [B, C]; only padding matters.
        beta: as in the loss.
        lengths: integer [B, C], tokens of each item, by which rewards are divided where the loss
            `has_reward_per_token`; None for sums over tokens.

    Returns:
        [B, C] in nats, detached; 0 at padding.
    """
    if reference_logps is not None:
        reference_logps = reference_logps.detach()
    values = beta * _logratios(policy_logps.detach(), reference_logps, levels)
    return values if lengths is None else pairwise.per_token(values, lengths)


def _find(name: str) -> Loss:
    """The entry of `LOSSES`; an unknown name raises an error that suggests the nearest one."""
    if name in LOSSES:
        return LOSSES[name]
    nearest = get_close_matches(name, LOSSES, n=1, cutoff=0.0)[0]
    raise ConfigError(
        f"loss={name!r} is unknown; did you mean {nearest!r}? Allowed: {', '.join(LOSSES)}."
    )


def _data_arguments(
    name: str, loss: Loss, lengths: Tensor | None, kl: Tensor | float | None
) -> dict[str, object]:
    """The data arguments, of `lengths` and `kl`, that the loss function takes."""
    needed = {"lengths": loss.needs_lengths, "kl": loss.needs_kl}
    given = {"lengths": lengths, "kl": kl}
    for key in DATA_PARAMETERS:
        if needed[key] and given[key] is None:
            raise ValueError(f"loss {name!r} needs {key}, got None.")
    return {key: value for key, value in given.items() if needed[key]}


def _check_shapes(
    policy_logps: Tensor, reference_logps: Tensor | None, levels: Tensor, lengths: Tensor | None
) -> None:
    """Raise unless all tensors are [B, C]: broadcasting would hide a mistake."""
    shapes = {"policy_logps": policy_logps.shape, "levels": levels.shape}
    if reference_logps is not None:
        shapes["reference_logps"] = reference_logps.shape
    if lengths is not None:
        shapes["lengths"] = lengths.shape
    if levels.ndim != 2 or len(set(shapes.values())) > 1:
        found = ", ".join(f"{key} {list(shape)}" for key, shape in shapes.items())
        raise ValueError(f"expected equal shapes [examples, candidates], got {found}.")
    if lengths is not None and ((lengths < 1) & (levels != PADDING_LEVEL)).any():
        raise ValueError("lengths must be at least 1 where levels is not -1 (padding).")


def _check_sets(name: str, loss: Loss, levels: Tensor) -> None:
    """Raise if an example's numbers of positives or negatives do not fit the loss."""
    positives, negatives = (mask.sum(-1) for mask in set_masks(levels))  # [B] each
    bad = ~_fits(positives, loss.positives) | ~_fits(negatives, loss.negatives)
    bad |= (levels < LOWER_NEGATIVE_LEVEL).any(-1)
    if not bad.any():
        return
    example = int(bad.nonzero()[0])
    amount = {"none": "any number of", "one": "exactly one", "many": "at least one"}
    raise DataError(
        f"example {example}: loss {name!r} needs {amount[loss.positives]} positive (level >= 1) "
        f"and {amount[loss.negatives]} negative (level 0 or -2), found "
        f"{int(positives[example])} and {int(negatives[example])} in levels "
        f"{levels[example].tolist()} (-1 is padding; levels below -2 are not allowed). Sample "
        "examples that fit the loss, or choose mult_dpo, which takes sets of any size."
    )


def _fits(count: Tensor, need: str) -> Tensor:
    """bool [B], True for set sizes [B] that satisfy 'none' (no requirement), 'one' or 'many'."""
    if need == "one":
        return count == 1
    return count >= (1 if need == "many" else 0)


def _logratios(policy_logps: Tensor, reference_logps: Tensor | None, levels: Tensor) -> Tensor:
    """log π_θ − log π_ref, or log π_θ without a reference: [B, C], >= float32, 0 at padding.

    Padding is replaced before any arithmetic: NaN times a zero gradient would still be NaN.
    """
    valid = levels != PADDING_LEVEL
    dtype = torch.promote_types(policy_logps.dtype, torch.float32)
    if reference_logps is None:
        return torch.where(valid, policy_logps.to(dtype), 0.0)
    dtype = torch.promote_types(dtype, reference_logps.dtype)
    policy = torch.where(valid, policy_logps.to(dtype), 0.0)
    return policy - torch.where(valid, reference_logps.to(dtype), 0.0)
