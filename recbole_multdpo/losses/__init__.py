"""Preference losses as pure functions on tensors; they import neither RecBole nor the model.

The table `LOSSES` is there without torch, which the functions import when one is first asked for:
a mistyped setting is answered before.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from recbole_multdpo.losses.table import LOSSES, Loss

if TYPE_CHECKING:
    from recbole_multdpo.losses.loss_bounds import Bounds, bounds
    from recbole_multdpo.losses.preference import preference_loss, rewards
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
_MODULES = {
    "Bounds": "loss_bounds",
    "bounds": "loss_bounds",
    "preference_loss": "preference",
    "rewards": "preference",
    "reward_accuracies": "sets",
    "set_masks": "sets",
    "set_means": "sets",
    "kl_estimate": "unpaired",
}


def __getattr__(name: str) -> object:
    """A function or class of this package, imported when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
