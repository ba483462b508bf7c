"""Liger's kernels in one model: wiring with a stand-in, and equality in Triton's interpreter.

The interpreter runs the kernels' code on CPU tensors: their values, not their compilation.

    pip install --target=/tmp/liger --no-deps liger-kernel triton
    TRITON_INTERPRET=1 PYTHONPATH=/tmp/liger python -m pytest tests/model/test_liger.py
"""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
from collections import Counter
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.training_step import Examples, loss_of
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.model import backbone as backbone_module
from recbole_multdpo.model import liger
from recbole_multdpo.model.backbone import (
    add_lora,
    frozen_copy,
    load_backbone,
    reference_context,
    save_backbone,
    set_gradient_checkpointing,
)
from recbole_multdpo.model.tiny import make_tiny_backbone
from recbole_multdpo.scoring.last_layer import serves
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.packed import packed_logps

integration = pytest.importorskip("transformers.integrations.liger", reason="transformers 5.2")
IDS = torch.tensor([[5, 6, 7, 8, 9], [20, 21, 22, 23, 24]])


def make_lm(kind: str = "qwen2", **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = dict(vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    heads = dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    config = AutoConfig.for_model(kind, **sizes, **heads, pad_token_id=0, **changes)
    lm = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "norm" in name:  # ones at first, which would hide a weight that is left out
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return lm


# ---- wiring, with a stand-in for the library ----


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls of a stand-in, which changes instances and the module as Liger does."""
    counted: Counter[str] = Counter()

    def counting(name: str, plain: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return plain(*args, **kwargs)

        return call

    def apply(lm: nn.Module, kernels: dict[str, bool]) -> None:
        assert {key for key, on in kernels.items() if on} == {"rms_norm", "swiglu", "rope"}
        modeling: Any = sys.modules[type(lm).__module__]
        modeling.apply_rotary_pos_emb = counting("rope", modeling.apply_rotary_pos_emb)
        for name in [name for name in vars(modeling) if name.endswith(("RMSNorm", "MLP"))]:
            setattr(modeling, name, nn.Identity)
        for module in lm.modules():
            for end in ("RMSNorm", "MLP"):
                if type(module).__name__.endswith(end):
                    forward = counting(end, type(module).forward)
                    module.forward = MethodType(forward, module)  # type: ignore[method-assign]

    monkeypatch.setattr(integration, "apply_liger_kernel", apply)
    return counted


@pytest.mark.parametrize("kind", liger.SERVED)
def test_one_model_is_changed_and_no_other(kind: str, calls: Counter[str]) -> None:
    lm, other = make_lm(kind), make_lm(kind)
    modeling = sys.modules[type(lm).__module__]
    before = dict(vars(modeling))
    liger.use_liger_kernels(kind, lm)
    assert dict(vars(modeling)) == before
    calls.clear()
    torch.testing.assert_close(lm(IDS).logits, other(IDS).logits, rtol=0, atol=0)
    norms = 9 if kind == "qwen3" else 5
    assert calls == {"rope": 2, "RMSNorm": norms, "MLP": 2}  # not one of the other's
    assert serves(lm.model)


def test_copies_compute_with_their_own_weights(calls: Counter[str]) -> None:
    lm = make_lm()
    liger.use_liger_kernels("x", lm)
    copied = frozen_copy(lm)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.zero_()
    calls.clear()
    torch.testing.assert_close(copied(IDS).logits, make_lm()(IDS).logits, rtol=0, atol=0)
    assert calls["rope"] == calls["MLP"] == 2


def test_kernels_that_are_wrong_or_do_not_run_are_refused(
    calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = integration.apply_liger_kernel

    def wrong(lm: Any, kernels: dict[str, bool]) -> None:
        right(lm, kernels)
        lm.model.norm.variance_epsilon = 1.0

    def broken(lm: Any, kernels: dict[str, bool]) -> None:
        raise RuntimeError("no C compiler")

    for apply, message in ((wrong, "logits of backbone='x' differ by"), (broken, "no C compiler")):
        monkeypatch.setattr(integration, "apply_liger_kernel", apply)
        with pytest.raises(ConfigError, match=f"{message}.*--use_liger_kernel=False"):
            liger.use_liger_kernels("x", make_lm())


def test_other_models_are_refused_before_their_weights_are_read() -> None:
    with pytest.raises(ConfigError, match="llama, mistral, qwen2, qwen3; backbone='x' is of type"):
        liger.check_served("x", AutoConfig.for_model("gpt2"))
    with pytest.raises(ConfigError, match="SiLU; that of backbone='x' has gelu"):
        liger.check_served("x", AutoConfig.for_model("llama", hidden_act="gelu"))
    for kind in liger.SERVED:
        liger.check_served("x", AutoConfig.for_model(kind))


def test_it_is_for_pretrained_backbones_on_a_gpu(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = dict(hidden_size=32, num_layers=1, num_heads=2, vocab_size=300)
    lm, tokenizer = make_tiny_backbone(["one", "two"], whole_texts=(), seed=0, **options)
    save_backbone(lm, tokenizer, tmp_path / "lm")
    used: list[str] = []
    monkeypatch.setattr(backbone_module, "use_liger_kernels", lambda name, lm: used.append(name))
    load_backbone(str(tmp_path / "lm"), use_liger_kernel=True)
    assert used == []
    meta = torch.device("cuda", 0)
    monkeypatch.setattr(backbone_module, "CPU", meta)  # weights stay on the CPU
    load_backbone(str(tmp_path / "lm"), use_liger_kernel=True, device=meta)
    load_backbone(str(tmp_path / "lm"), device=meta)
    assert used == [str(tmp_path / "lm")]


# ---- equality, in Triton's interpreter ----


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Liger's kernels on CPU tensors; counts rotary embeddings."""
    counted: Counter[str] = Counter()
    for name in ("liger_kernel", "triton"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install liger-kernel triton")
    if os.environ.get("TRITON_INTERPRET") != "1":  # read when Triton is imported
        pytest.skip("Triton would compile for a GPU: start pytest with TRITON_INTERPRET=1")
    import liger_kernel.transformers.monkey_patch as patches
    import numpy as np
    import triton.language as tl
    from liger_kernel.ops import rms_norm as kernels
    from triton.runtime import interpreter

    plain = interpreter._implicit_cvt

    def converted(value: Any) -> Any:
        """A number as the compiler passes it on; the interpreter leaves it one of Python."""
        if not isinstance(value, float):
            return plain(value)
        handle = interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32)
        return tl.tensor(handle, tl.float32)

    monkeypatch.setattr(interpreter, "_implicit_cvt", converted)
    # of CUDA's library, which the interpreter does not have
    monkeypatch.setattr(kernels, "rsqrt", lambda value: 1 / tl.sqrt(value))

    of_liger = patches.liger_rotary_pos_emb

    def rope(*args: Tensor) -> Any:
        counted["rope"] += 1
        return of_liger(*args)

    monkeypatch.setattr(patches, "liger_rotary_pos_emb", rope)
    return counted


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def with_gradients(lm: nn.Module, output: Tensor, loss: Tensor) -> list[Tensor]:
    trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
    return [output.detach(), *torch.autograd.grad(loss, trained)]


def of_logits(lm: Any) -> list[Tensor]:
    logits = lm(IDS).logits
    return with_gradients(lm, logits, logits.square().mean())


@pytest.mark.parametrize("kind", liger.SERVED)
def test_values_and_gradients_are_those_of_transformers(
    kind: str, interpreted: Counter[str]
) -> None:
    lm = make_lm(kind)
    expected = of_logits(lm)
    liger.use_liger_kernels(kind, lm)
    assert type(lm.model.norm).__name__ != lm.model.norm._get_name() == "LigerRMSNorm"
    assert lm.model.layers[0].mlp._get_name() == "LigerSwiGLUMLP"
    interpreted.clear()
    assert_equal(of_logits(lm), expected)
    assert interpreted["rope"] == 2
    lm.model.layers[1].post_attention_layernorm.variance_epsilon = 1.0  # the control
    with pytest.raises(AssertionError):
        assert_equal(of_logits(lm), expected)


@pytest.mark.parametrize(("kind", "checkpointing"), [("qwen2", False), ("qwen3", True)])
def test_a_step_with_lora_is_the_same(
    kind: str, checkpointing: bool, interpreted: Counter[str]
) -> None:
    """Log-probabilities of packed candidates, their gradients, and the reference's."""
    plain = make_lm(kind)
    fused = copy.deepcopy(plain)
    liger.use_liger_kernels(kind, fused)
    examples = Examples.draw(6, 3, 2, 60)
    found = []
    for lm in (plain, fused):
        lm = add_lora(lm, r=2, alpha=4, dropout=0.0, target_modules="all-linear", seed=3)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in lm.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        set_gradient_checkpointing(lm, checkpointing)
        lm.eval()
        assert serves(causal_lm(lm).model)  # type: ignore[arg-type]
        lm.train()
        batch = (examples.prompts, examples.candidates, examples.catalogue)
        with reference_context(lm):
            reference = packed_logps(lm, *batch)
        policy = packed_logps(lm, *batch)
        found.append([reference, *with_gradients(lm, policy, loss_of(policy))])
    assert_equal(found[1], found[0])
    # other code has computed them
    assert not all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
    assert (found[0][0] - found[0][1]).abs().max() > 1e-3
