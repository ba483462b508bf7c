"""LoRA without casts: PEFT's values, gradients and files; its operations; merged rankings."""

from __future__ import annotations

import collections
import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_multdpo.errors import TrainingError
from recbole_multdpo.model import lora as lora_module
from recbole_multdpo.model.backbone import add_lora, merge_lora, reference_context
from recbole_multdpo.model.lora import (
    LoraLinear,
    adapter_is_zero,
    merged_for_ranking,
    without_casts,
)
from recbole_multdpo.model.modes import train_without_dropout
from recbole_multdpo.scoring.lm import causal_lm

TOKENS = torch.tensor([[50, 51, 52, 1], [40, 30, 50, 60]])
OPTIONS = dict(r=2, alpha=4, dropout=0.0, target_modules="all-linear", seed=3)
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
# operations that return a view of their input: no work for a device
VIEWS = frozenset(
    "view t expand transpose unsqueeze slice select detach alias as_strided permute squeeze "
    "_unsafe_view".split()
)


class Operations(TorchDispatchMode):
    """Counts operations other than views."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name not in VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def filled(model: nn.Module, seed: int = 1) -> nn.Module:
    """Stands for training: the adapter's update is not zero any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def of_peft(model: nn.Module, adapter: torch.dtype | None = None) -> nn.Module:
    """The same model with the forward pass of PEFT, and an adapter of another dtype."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if type(module) is LoraLinear:
            module.__class__ = PeftLinear
    for name, parameter in twin.named_parameters():
        if "lora_" in name and adapter is not None:
            parameter.data = parameter.data.to(adapter)
    return twin


def layer_of(dtype: torch.dtype, *, bias: bool = True, rows: int = 7, **options: Any) -> Any:
    """An adapted linear layer 24 -> 40 with an update, and an input [2, rows, 24]."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40, bias=bias)).to(dtype)
    config = LoraConfig(target_modules=["0"], **{"r": 4, "lora_alpha": 12, **options})  # type: ignore[arg-type]
    adapted: Any = get_peft_model(model, config, autocast_adapter_dtype=False)  # type: ignore[arg-type]
    without_casts(adapted)
    return filled(adapted), torch.randn(2, rows, 24, dtype=dtype)


def results(model: Any, x: Tensor) -> dict[str, Tensor]:
    """Output and all gradients."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    y.mul(torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    found = {
        n.split(".")[-3]: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad
    }
    assert x.grad is not None
    return {"output": y.detach(), "input": x.grad, **found}


def largest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of each tensor over its largest value."""
    assert found.keys() == expected.keys()
    return {
        name: float((found[name].double() - value).abs().max() / value.double().abs().max())
        for name, value in expected.items()
    }


@pytest.fixture
def never_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward pass of ours is an error."""
    monkeypatch.setattr(lora_module._AdaptedLinear, "apply", None)


class TestLayer:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("dtype", [FLOAT32, torch.float64])
    def test_values_and_gradients_are_those_of_peft(self, dtype: torch.dtype, bias: bool) -> None:
        model, x = layer_of(dtype, bias=bias)
        tolerance = 1e-6 if dtype == FLOAT32 else 1e-14
        expected = results(of_peft(model), x)
        assert max(largest(results(model, x), expected).values()) < tolerance
        model.base_model.model[0].scaling["default"] *= 1.001  # control
        differing = largest(results(model, x), expected)
        assert all(value > 1e-5 for value in differing.values())

    def test_bfloat16_is_as_exact_as_its_numbers(self) -> None:
        """Against float64 on the same weights: one rounding of the result, as in PEFT's float32."""
        model, x = layer_of(BFLOAT16, rows=200)
        exact = results(of_peft(model).double(), x.double())
        ours, theirs = results(model, x), results(of_peft(model, FLOAT32), x)
        assert all(value.dtype == BFLOAT16 for value in ours.values())
        errors = largest(ours, exact)
        assert max(errors.values()) < 2**-7
        before = largest(theirs, exact)
        # PEFT rounds the gradients of A and B to float32 only
        assert errors["output"] < 1.5 * before["output"]
        assert errors["input"] < 1.5 * before["input"]

    def test_equals_the_base_layer_bit_for_bit_while_the_update_is_zero(self) -> None:
        for dtype in (FLOAT32, BFLOAT16):
            model, x = layer_of(dtype, rows=33)
            layer = model.base_model.model[0]
            nn.init.zeros_(layer.lora_B["default"].weight)
            assert torch.equal(layer(x), layer.base_layer(x))

    @pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 0, 24), (2, 3, 4, 24)])
    def test_any_number_of_dimensions(self, shape: tuple[int, ...]) -> None:
        model, _ = layer_of(FLOAT32)
        x = torch.randn(shape)
        torch.testing.assert_close(model(x), of_peft(model)(x))

    def test_what_needs_no_gradient_gets_none(self) -> None:
        model, x = layer_of(FLOAT32)
        layer = model.base_model.model[0]
        layer.lora_A["default"].weight.requires_grad_(False)
        model(x).sum().backward()
        assert x.grad is None and layer.lora_A["default"].weight.grad is None
        assert layer.lora_B["default"].weight.grad is not None

    def test_a_trained_bias_of_the_base_layer_gets_its_gradient(self, never_ours: None) -> None:
        """PEFT's `bias="all"` trains it."""
        model, x = layer_of(FLOAT32)
        bias = model.base_model.model[0].base_layer.bias.requires_grad_()
        model(x).sum().backward()
        assert bias.grad.tolist() == [14.0] * 40

    @pytest.mark.parametrize(
        "options",
        [{"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}],
        ids=["DoRA", "dropout", "bias"],
    )
    def test_other_adapters_are_left_to_peft(
        self, options: dict[str, Any], never_ours: None
    ) -> None:
        model, x = layer_of(FLOAT32, **options)
        torch.manual_seed(5)
        found = model.train()(x)
        torch.manual_seed(5)
        assert torch.equal(found, of_peft(model).train()(x))

    def test_other_states_are_left_to_peft(self, never_ours: None) -> None:
        model, x = layer_of(FLOAT32)
        twin = of_peft(model)

        with model.disable_adapter(), twin.disable_adapter():
            assert torch.equal(model(x), twin(x))
        for each in (model, twin):
            each.add_adapter("other", LoraConfig(target_modules=["0"], r=3))
            each.base_model.set_adapter(["default", "other"])
        assert torch.equal(model(x), twin(x))
        model, x = layer_of(FLOAT32)
        model.merge_adapter()
        assert torch.equal(model(x), model.base_model.model[0].base_layer(x))
        with pytest.raises(TypeError, match="not callable"):  # control
            layer_of(FLOAT32)[0](x)

    def test_adapters_of_another_dtype_and_autocast_are_left_to_peft(
        self, never_ours: None
    ) -> None:
        model, x = layer_of(BFLOAT16)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
        assert torch.equal(model(x), of_peft(model)(x))
        model, x = layer_of(FLOAT32)
        with torch.autocast("cpu", BFLOAT16):
            assert torch.equal(model(x), of_peft(model)(x))

    def test_operations_and_memory_of_a_layer(self) -> None:
        """Counted with an adapter in bfloat16; control: PEFT's float32 adapter and casts.

        Forward: base layer, two products. Backward: five products, no sum, no scaling, no cast.
        """
        model, x = layer_of(BFLOAT16)
        found = {}
        for name, each in (("ours", model), ("peft", of_peft(model, FLOAT32))):
            kept: dict[int, tuple[int, Tensor]] = {}
            weights = {p.untyped_storage().data_ptr() for p in each.parameters()}

            def keep(tensor: Tensor, kept: Any = kept, weights: Any = weights) -> Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in weights:
                    kept[storage.data_ptr()] = (storage.nbytes(), tensor)
                return tensor

            inputs = x.clone().requires_grad_()
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                with Operations() as forward:
                    y = each(inputs)
            with Operations() as backward:
                y.backward(torch.ones_like(y))
            found[name] = [
                forward.counts.total(),
                backward.counts.total() - 1,  # ones_like
                sum(size for size, _ in kept.values()) // (14 * 2),
            ]
        # what is kept, in numbers of 16 bits per token: x and A x; with PEFT x twice, in float32
        assert found["ours"] == [3, 5, 24 + 4]
        assert found["peft"][0] >= 7 and found["peft"][1] >= 9 and found["peft"][2] >= 2 * 24


class TestModel:
    @pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
    def test_the_adapter_has_the_models_dtype(self, make_lm: Any, dtype: torch.dtype) -> None:
        model = add_lora(make_lm(dtype=dtype), **OPTIONS)
        assert {p.dtype for p in model.parameters()} == {dtype}
        adapted = [m for m in model.modules() if isinstance(m, PeftLinear)]
        assert len(adapted) == 14 and {type(m) for m in adapted} == {LoraLinear}

    @pytest.mark.parametrize("checkpointing", [False, True])
    @pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
    def test_policy_and_reference_are_equal_at_the_first_step(
        self, make_lm: Any, dtype: torch.dtype, checkpointing: bool
    ) -> None:
        """In training mode, with a gradient; after one merged adapter, as in the second stage."""
        lm = make_lm(dtype=dtype)
        if checkpointing:
            lm.gradient_checkpointing_enable({"use_reentrant": False})
        merged = merge_lora(filled(add_lora(lm, **OPTIONS)))
        model = add_lora(merged, **{**OPTIONS, "seed": 4})
        train_without_dropout(model)
        policy = model(TOKENS).logits
        assert policy.requires_grad
        with reference_context(model):
            assert torch.equal(model(TOKENS).logits, policy)
        filled(model)
        assert not torch.equal(model(TOKENS).logits, policy)  # control

    def test_gradients_of_a_model_are_those_of_peft(self, make_lm: Any) -> None:
        model = filled(add_lora(make_lm(), **OPTIONS))
        twin = of_peft(model)
        for each in (model, twin):
            each(TOKENS).logits.logsumexp(-1).sum().backward()
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            if one.requires_grad:
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
    def test_files_are_those_of_peft(
        self, make_lm: Any, tmp_path: Path, dtype: torch.dtype
    ) -> None:
        model = filled(add_lora(make_lm(dtype=dtype), **OPTIONS))
        model.save_pretrained(tmp_path / "ours", save_embedding_layers=False)
        of_peft(model).save_pretrained(tmp_path / "peft", save_embedding_layers=False)
        ours, theirs = (
            json.loads((tmp_path / name / "adapter_config.json").read_text())
            for name in ("ours", "peft")
        )
        for config in (ours, theirs):
            config["target_modules"].sort()  # PEFT writes a set
        assert ours == theirs
        loaded = PeftModel.from_pretrained(make_lm(dtype=dtype), tmp_path / "ours")
        found, expected = loaded.state_dict(), model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name].to(dtype), expected[name]) for name in expected)


class TestMergedForRanking:
    @pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
    def test_ranks_as_the_merged_model_and_restores_every_bit(
        self, make_lm: Any, dtype: torch.dtype
    ) -> None:
        model = filled(add_lora(make_lm(dtype=dtype), **OPTIONS)).eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            adapted = model(TOKENS).logits
            with merged_for_ranking(model):
                ranked = model(TOKENS).logits
            assert torch.equal(model(TOKENS).logits, adapted)
            assert torch.equal(ranked, merge_lora(copy.deepcopy(model))(TOKENS).logits)
            torch.testing.assert_close(
                ranked, adapted, atol=1e-5 if dtype == FLOAT32 else 0.2, rtol=0
            )
            assert not torch.equal(ranked, adapted)
        after = model.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert all(p.requires_grad == ("lora_" in n) for n, p in model.named_parameters())
        if dtype == BFLOAT16:  # control: PEFT's way, subtracting the update again
            model.merge_adapter(safe_merge=True)
            model.unmerge_adapter()
            assert not all(torch.equal(model.state_dict()[n], before[n]) for n in before)

    def test_inside_of_another(self, make_lm: Any) -> None:
        model = filled(add_lora(make_lm(), **OPTIONS)).eval()
        weight = causal_lm(model).model.layers[0].mlp.up_proj.base_layer.weight
        before = weight.clone()
        with merged_for_ranking(model):
            merged = weight.clone()
            with merged_for_ranking(model):
                assert torch.equal(weight, merged)
            assert torch.equal(weight, merged) and not torch.equal(weight, before)
        assert torch.equal(weight, before)

    def test_restores_after_an_error(self, make_lm: Any) -> None:
        model = filled(add_lora(make_lm(), **OPTIONS)).eval()
        before = model(TOKENS).logits
        with pytest.raises(KeyboardInterrupt), merged_for_ranking(model):
            raise KeyboardInterrupt
        assert torch.equal(model(TOKENS).logits, before)

    def test_an_adapter_that_is_not_finite(self, make_lm: Any) -> None:
        model = filled(add_lora(make_lm(), **OPTIONS))
        weights = {n: p.clone() for n, p in model.named_parameters() if "base_layer" in n}
        with torch.no_grad():
            [p for n, p in model.named_parameters() if "lora_B" in n][5][0] = torch.nan
        with pytest.raises(TrainingError, match="cannot be merged"), merged_for_ranking(model):
            pass
        after = dict(model.named_parameters())
        assert all(torch.equal(after[name], weights[name]) for name in weights)

    def test_an_adapter_of_zeros_costs_nothing(self, make_lm: Any) -> None:
        """No weight is copied, and its operations are those of the model without it."""
        plain = make_lm().eval()
        with torch.no_grad(), Operations() as without:
            plain(TOKENS)
        model = add_lora(plain, **OPTIONS).eval()
        assert adapter_is_zero(model) and not adapter_is_zero(filled(copy.deepcopy(model)))
        pointers = [p.data_ptr() for p in model.parameters()]
        with torch.no_grad(), merged_for_ranking(model), Operations() as switched_off:
            model(TOKENS)
            assert [p.data_ptr() for p in model.parameters()] == pointers
        assert switched_off.counts == without.counts
        assert all(p.requires_grad == ("lora_" in n) for n, p in model.named_parameters())
        weights = {n: p.clone() for n, p in model.named_parameters() if "base_layer" in n}
        merged = dict(merge_lora(model).named_parameters())
        for name, weight in weights.items():
            own = name.removeprefix("base_model.model.").replace("base_layer.", "")
            assert torch.equal(merged[own], weight)

    def test_takes_no_operations_while_it_ranks(self, make_lm: Any) -> None:
        """Control: the adapter takes two products for each of 14 layers."""
        plain = make_lm().eval()
        with torch.no_grad(), Operations() as without:
            plain(TOKENS)
        model = filled(add_lora(plain, **OPTIONS)).eval()
        with torch.no_grad(), merged_for_ranking(model), Operations() as merged:
            model(TOKENS)
        assert merged.counts == without.counts
        with torch.no_grad(), Operations() as adapted:
            model(TOKENS)
        assert adapted.counts.total() == without.counts.total() + 2 * 14

    def test_models_without_an_adapter(self, make_lm: Any) -> None:
        lm = make_lm()
        with merged_for_ranking(lm):
            assert torch.isfinite(lm(TOKENS).logits).all()
