"""Access to the causal language model inside a PEFT model."""

from __future__ import annotations

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """The Hugging Face causal LM itself, with its adapter layers, if any, in place.

    Raises:
        TypeError: `model` is neither a Hugging Face nor a PEFT model.
    """
    lm = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(lm, PreTrainedModel):
        raise TypeError(f"a {type(lm).__name__} is neither a Hugging Face nor a PEFT model")
    return lm
