"""The memory formula: parameters counted by transformers, activations counted by autograd."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2ForCausalLM

from benchmarks.training_memory import SHAPES, SMALL, Shape, activation_bytes, markdown, state_bytes

NARROW = Shape("narrow", 256, 4, 1024, 8, 2, 1000, False)


@pytest.mark.parametrize("shape", [SMALL, NARROW, *SHAPES], ids=lambda shape: shape.name)
def test_parameters_are_those_of_the_model(shape: Shape) -> None:
    with torch.device("meta"):
        model = Qwen2ForCausalLM(shape.config())
    assert shape.parameters() == sum(p.numel() for p in model.parameters())
    linears = [m for n, m in model.named_modules() if n.endswith("_proj")]
    expected = sum(8 * (m.in_features + m.out_features) for m in linears)
    assert shape.lora_parameters(8) == expected


@pytest.mark.parametrize("shape", [SMALL, NARROW], ids=lambda shape: shape.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_are_what_autograd_keeps(shape: Shape, dtype: torch.dtype) -> None:
    n_tokens, kept = 64, {}
    model = Qwen2ForCausalLM(shape.config()).to(dtype).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # with the tensor, so that its memory is not used again
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(
            input_ids=torch.zeros(1, n_tokens, dtype=torch.long),
            attention_mask=torch.zeros(1, 1, n_tokens, n_tokens, dtype=dtype),
            use_cache=False,
        )
    measured = sum(size for size, _ in kept.values())
    computed = activation_bytes(shape, n_tokens, checkpointing=False, low=dtype.itemsize)
    assert measured == pytest.approx(computed, rel=0.05)


def test_what_each_stage_divides() -> None:
    """A model of P weights in bfloat16, all trained: 2P, 2P reference, 4P gradients, 12P states."""
    shape, n = SHAPES[0], 4
    p = shape.parameters()
    entries = ("weights", "reference", "gradients", "optimizer")
    expected = {
        "plain": (2, 2, 4, 12),
        "zero1": (2, 2, 4, 12 / n),
        "zero2": (2, 2, 4 / n, 12 / n),
        "zero3": (2 / n, 2 / n, 4 / n, 12 / n),
    }
    for method, per_weight in expected.items():
        found = state_bytes(shape, method, n, lora=False)
        assert found == pytest.approx(dict(zip(entries, (b * p for b in per_weight), strict=True)))
    lora = state_bytes(shape, "plain", n, lora=True)
    assert lora["reference"] == 0
    assert lora["optimizer"] == 8 * shape.lora_parameters()


def test_the_table_has_every_model_twice() -> None:
    rows = markdown(8, 4096).splitlines()
    assert len(rows) == 2 + 2 * len(SHAPES)
    assert {row.count("|") for row in rows} == {9}
