"""Liger's fused kernels in a language model: RMS norm, SwiGLU and rotary embedding, on CUDA.

Each is one kernel forward and one backward where transformers has several, and products within are
not kept for the backward pass. Values and gradients are the same up to the order of sums. Kernels
write gradients over what was kept, so a graph has one backward pass. The head is not Liger's: its
fused cross-entropy takes one label per position over the whole vocabulary, while ours scores a few
rows, several tokens each (`scoring.head`).

Liger exchanges functions in the modules of transformers, for all models of the process. Here one
model gets them, so that a second one in the process computes as it would alone.
"""

from __future__ import annotations

import inspect
import sys
from types import FunctionType, MethodType
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from recbole_multdpo.errors import ConfigError

# model types whose values and gradients the tests compare with and without
SERVED = ("llama", "mistral", "qwen2", "qwen3")
_KERNELS = {
    "rms_norm": True,
    "swiglu": True,
    "rope": True,
    "cross_entropy": False,
    "fused_linear_cross_entropy": False,
}
# difference of logits over the largest one: rounding, by the weights' dtype
_TOLERANCE, _TOLERANCE_16_BIT = 1e-3, 0.05
_WITHOUT = "Use --use_liger_kernel=False."


def check_served(name: str, config: PreTrainedConfig) -> None:
    """Refuse models that the kernels were not compared with.

    Raises:
        ConfigError: the model is of another type, or its MLP has another activation than SiLU.
    """
    if config.model_type not in SERVED:
        raise ConfigError(
            f"use_liger_kernel=True serves models of type {', '.join(SERVED)}; backbone={name!r} "
            f"is of type {config.model_type}. {_WITHOUT}"
        )
    activation = getattr(config, "hidden_act", None)
    if activation not in ("silu", "swish"):
        raise ConfigError(
            f"use_liger_kernel=True needs an MLP with SiLU; that of backbone={name!r} has "
            f"{activation}. {_WITHOUT}"
        )


@torch.no_grad()
def use_liger_kernels(name: str, lm: PreTrainedModel) -> None:
    """Let the layers of `lm`, and of copies of it, compute with Liger's kernels.

    The model is tried once with and without, so that what is wrong is known before the run: Triton
    compiles at the first call, for which it needs a C compiler.

    Args:
        name: the setting `backbone`, for messages.
        lm: of a type that `check_served` accepts, in eval mode, on a GPU; it has no adapter.

    Raises:
        ConfigError: the kernels cannot run here, or give other logits than transformers.
    """
    ids = torch.arange(1, 9, device=lm.device).view(2, 4)
    expected = lm(input_ids=ids, use_cache=False).logits
    try:
        _exchange(lm)
        found = lm(input_ids=ids, use_cache=False).logits
    except Exception as error:  # Triton's compiler, its driver and Liger raise many types
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConfigError(
            f"use_liger_kernel=True: Liger's kernels cannot run with backbone={name!r} here "
            f"({reason}). Triton needs a C compiler and a GPU that it supports. {_WITHOUT}"
        ) from error
    tolerance = _TOLERANCE if lm.dtype.itemsize > 2 else _TOLERANCE_16_BIT
    apart = float((expected - found).abs().max() / expected.abs().max())
    if not apart <= tolerance:
        raise ConfigError(
            f"use_liger_kernel=True: logits of backbone={name!r} differ by {apart:.2g} of the "
            f"largest one from those without. {_WITHOUT}"
        )


def _exchange(lm: PreTrainedModel) -> None:
    """Exchange the forward passes of the norms, MLPs and attention layers of one model."""
    from transformers.integrations.liger import apply_liger_kernel  # since transformers 5.2

    modeling = sys.modules[type(lm).__module__]
    before = dict(vars(modeling))
    try:
        apply_liger_kernel(lm, _KERNELS)  # norms and MLPs by instance, the rest in the module
        exchanged = dict(vars(modeling))
    finally:
        vars(modeling).update(before)
    for module in lm.modules():
        # attention calls apply_rotary_pos_emb by its name in the module: a forward pass of its own
        # finds Liger's there
        plain: Any = inspect.unwrap(type(module).forward)
        if "apply_rotary_pos_emb" in plain.__code__.co_names:
            own = FunctionType(
                plain.__code__, exchanged, plain.__name__, plain.__defaults__, plain.__closure__
            )
            own.__kwdefaults__ = plain.__kwdefaults__
            module.forward = MethodType(own, module)
