"""LoRA layers without casts, and the adapter merged while the model ranks.

PEFT keeps an adapter in float32 and casts the input of every adapted layer to it and the result
back. Here adapter and layer have one dtype (`training.master_weights` has the float32 weights of
a bfloat16 adapter), and base layer and update are three matrix products in a row. All else is
PEFT's: names, files, merging, and every adapter that is not the plain one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from recbole_multdpo.errors import TrainingError


class LoraLinear(PeftLinear):
    """PEFT's adapted linear layer, with a faster forward pass where the adapter is a plain one."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """W x + bias + scaling · B A x, of the shape [..., out] and the dtype of x [..., in]."""
        if args or kwargs or not self._is_plain(x):
            return super().forward(x, *args, **kwargs)
        (adapter,) = self.active_adapters
        return _AdaptedLinear.apply(
            x,
            self.base_layer.weight,
            self.base_layer.bias,
            self.lora_A[adapter].weight,
            self.lora_B[adapter].weight,
            self.scaling[adapter],
        )

    def _is_plain(self, x: Tensor) -> bool:
        """True if nothing but the matrices of one adapter takes part, all of them of x's dtype."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return False
        (adapter,) = self.active_adapters
        if adapter not in self.lora_A or adapter in self.lora_variant:
            return False
        weight, dropout = self.base_layer.weight, self.lora_dropout[adapter]
        update = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        return (
            type(self.base_layer) is nn.Linear
            and not any(p.requires_grad for p in self.base_layer.parameters())  # a bias
            and not hasattr(weight, "ds_id")  # ZeRO-3 gathers weights when their module is called
            and all(matrix.dtype == weight.dtype == x.dtype for matrix in update)
            and self.lora_B[adapter].bias is None
            and not (self.training and isinstance(dropout, nn.Dropout) and dropout.p > 0)
            and not torch.is_autocast_enabled(x.device.type)
        )


class _AdaptedLinear(torch.autograd.Function):
    """Linear layer with a frozen weight plus a low-rank update.

    In one function, as autograd would add up the two gradients of x in a pass of its own, and
    multiply by the scaling in others. It keeps x and A x.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        result = F.linear(x, weight, bias)  # as the base layer alone does for the reference
        inner = rows @ a.t()
        result.view(-1, result.shape[-1]).addmm_(inner, b.t(), alpha=scaling)
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scaling = scaling
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, inner = ctx.saved_tensors
        for_x, _, _, for_a, for_b, _ = ctx.needs_input_grad
        scaling, grad_x, grad_a, grad_b = ctx.scaling, None, None, None
        rows = gradient.reshape(-1, gradient.shape[-1])
        grad_inner = rows @ b  # without the scaling
        if for_b:
            grad_b = torch.addmm(b, rows.t(), inner, beta=0, alpha=scaling)
        if for_a:
            inputs = x.reshape(-1, x.shape[-1])
            grad_a = torch.addmm(a, grad_inner.t(), inputs, beta=0, alpha=scaling)
        if for_x:
            grad_x = (rows @ weight).addmm_(grad_inner, a, alpha=scaling).view(x.shape)
        return grad_x, None, None, grad_a, grad_b, None


def without_casts(model: PeftModel) -> None:
    """Give the adapted linear layers the forward pass of `LoraLinear`."""
    for module in model.modules():
        if type(module) is PeftLinear:
            module.__class__ = LoraLinear


def adapter_is_zero(model: nn.Module) -> bool:
    """True if the adapter's update is exactly zero, as before its first step."""
    return not any(
        bool(parameter.any()) for name, parameter in model.named_parameters() if "lora_B" in name
    )


@contextmanager
def merged_for_ranking(model: nn.Module) -> Iterator[None]:
    """Let a model rank with its adapter merged, without gradients, inside the block only.

    A merged adapter takes no operations. The adapted layers' weights of before are kept and put
    back, not computed back, so they are the very same afterwards. They are kept in the memory of
    the CPU, so that a GPU holds one layer at a time twice, and no more.

    An adapter whose update is zero is switched off instead, which costs nothing. Models without an
    adapter and merged ones stay as they are.

    Raises:
        TrainingError: merged weights are not finite.
    """
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer) and not m.merged]
    if not isinstance(model, PeftModel) or not layers:
        yield
        return
    if adapter_is_zero(model):
        with model.disable_adapter():
            yield
        return
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for layer in layers:
            before = [(weight, weight.data) for weight in layer.get_base_layer().parameters()]
            with explain_merge_errors():
                layer.merge(safe_merge=True)  # into new tensors
            kept += [
                (weight, values.to("cpu"))
                for weight, values in before
                if weight.data_ptr() != values.data_ptr()
            ]
            del before
        yield
    finally:
        for weight, values in kept:
            weight.data = values.to(weight.device)
        for layer in layers:
            layer.merged_adapters.clear()


@contextmanager
def explain_merge_errors() -> Iterator[None]:
    """Turn PEFT's refusal to merge an adapter that is not finite into a TrainingError."""
    try:
        yield
    except ValueError as error:
        raise TrainingError(
            f"the LoRA adapter cannot be merged: {error} Lower --learning_rate."
        ) from error
