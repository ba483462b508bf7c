"""Preference losses as pure functions on tensors; they import neither RecBole nor the model."""

from recbole_multdpo.losses.bounds import Bounds, bounds
from recbole_multdpo.losses.preference import LOSSES, Loss, preference_loss, rewards
from recbole_multdpo.losses.sets import reward_accuracies, set_masks, set_means
from recbole_multdpo.losses.unpaired import kl_estimate

__all__ = [
    "LOSSES",
    "Bounds",
    "Loss",
    "bounds",
    "kl_estimate",
    "preference_loss",
    "reward_accuracies",
    "rewards",
    "set_masks",
    "set_means",
]
