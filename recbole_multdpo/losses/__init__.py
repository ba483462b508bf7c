"""Preference losses as pure functions on tensors; nothing here knows of RecBole or of the model."""

from recbole_multdpo.losses.preference import (
    LOSSES,
    Loss,
    preference_loss,
    rewards,
    set_masks,
    set_means,
)

__all__ = ["LOSSES", "Loss", "preference_loss", "rewards", "set_masks", "set_means"]
