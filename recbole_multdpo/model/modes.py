"""Training and eval mode of the parts of a language model.

Besides `nn.Dropout`, the mode controls dropout inside attention, skipped layers and noise in
routers. All of them check their module's `training` and are off in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def train_without_dropout(lm: nn.Module) -> None:
    """Run the backbone in eval mode, and only its adapter in training mode.

    Gradients flow as before. Layers with gradient checkpointing keep it: transformers checkpoints
    only in training mode, so these layers stay in it and switch to eval mode while they compute.
    `train` or `eval` of the whole model undoes all this.

    Args:
        lm: a Hugging Face model, with an adapter of PEFT or without.
    """
    lm.eval()
    for module in lm.modules():
        if isinstance(module, BaseTunerLayer):
            module.train()
            module.get_base_layer().eval()
        elif isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = True
            module._gradient_checkpointing_func = partial(  # type: ignore[assignment]
                _checkpointed, lm, module
            )


@contextmanager
def restore_modes(lm: nn.Module) -> Iterator[None]:
    """Restore the mode of every module on exit."""
    modes = [(module, module.training) for module in lm.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _checkpointed(lm: nn.Module, layer: nn.Module, forward: Callable[..., Any], *args: Any) -> Any:
    """Run a layer's `forward` in the mode of the whole model, with gradient checkpointing."""

    def computed(*args: Any) -> Any:
        mode, layer.training = layer.training, lm.training
        try:
            return forward(*args)
        finally:
            layer.training = mode

    return checkpoint(computed, *args, use_reentrant=False)
