"""Which parts of a language model are in training mode.

A backbone's modes decide more than `nn.Dropout`: dropout inside attention, skipped layers, noise
in routers. All of it asks a module's own `training`, under whatever name its probability goes, and
none of it acts in eval mode.
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
    """Let the backbone compute as in eval mode, and only its adapter as in training mode.

    Gradients flow as ever, and layers with gradient checkpointing keep it: transformers asks their
    `training` for that, so they say that they train and take it back while they compute. `train` or
    `eval` of the whole model undoes all this.

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
def modes_kept(lm: nn.Module) -> Iterator[None]:
    """Afterwards every module has the mode it had before."""
    modes = [(module, module.training) for module in lm.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _checkpointed(lm: nn.Module, layer: nn.Module, forward: Callable[..., Any], *args: Any) -> Any:
    """`forward` of a layer, in the mode of the whole model, computed again in the backward pass."""

    def computed(*args: Any) -> Any:
        mode, layer.training = layer.training, lm.training
        try:
            return forward(*args)
        finally:
            layer.training = mode

    return checkpoint(computed, *args, use_reentrant=False)
