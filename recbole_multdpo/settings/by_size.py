"""Numbers of epochs by the number of examples: `auto` of `sft_epochs` and `epochs`."""

from __future__ import annotations

from math import sqrt
from typing import Literal

AUTO: Literal["auto"] = "auto"
# the first stage and the second, chosen for `tiny` on ml-100k
TUNED_EXAMPLES = 943
TUNED_EPOCHS = {"sft": 40, "preference": 1}


def epochs_for(setting: int | Literal["auto"], stage: str, n_examples: int) -> int:
    """Epochs of a stage: the setting's, or, of `auto`, as many as the number of examples asks for.

    Up to ml-100k's 943 examples these are the epochs chosen there. Beyond, the examples that are
    seen in all grow with the square root of those that there are: four times as many users have
    half as many epochs, and at least one.

    Args:
        setting: `sft_epochs` or `epochs`.
        stage: 'sft' or 'preference'.
        n_examples: examples of an epoch, which are users or conversations.
    """
    if setting != AUTO:
        return setting
    fewer = sqrt(TUNED_EXAMPLES / max(n_examples, TUNED_EXAMPLES))
    return max(round(TUNED_EPOCHS[stage] * fewer), 1)
