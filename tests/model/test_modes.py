"""Dropout of the backbone in preference training: none, of whatever kind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from recbole_multdpo.model.backbone import (
    _enable_gradient_checkpointing,
    add_lora,
    reference_context,
)
from recbole_multdpo.model.modes import restore_modes, train_without_dropout

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 2}
# modules, probabilities kept as numbers, functions inside attention, skipped layers, router noise
NOISY = {
    "gpt2": {"attn_pdrop": 0.3, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global"], 2]], "resid_dropout": 0.3},
    "opt": {"dropout": 0.3, "layerdrop": 0.5, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "biogpt": {"hidden_dropout_prob": 0.3, "layerdrop": 0.5},
    "seed_oss": {"attention_dropout": 0.3, "residual_dropout": 0.0, "head_dim": 8},
    "phi": {"resid_pdrop": 0.3},
    "falcon": {"hidden_dropout": 0.3, "alibi": False},
    "mixtral": {"router_jitter_noise": 0.3, **EXPERTS},
    "phimoe": {"input_jitter_noise": 0.3, **EXPERTS},
}
TOKENS = torch.tensor([[5, 6, 7, 8, 9, 3], [11, 12, 13, 4, 20, 21]])


def noisy(model_type: str, attn: str = "sdpa", checkpointing: bool = False) -> nn.Module:
    """A model with noise in training mode and weights so large that it shows."""
    config = AutoConfig.for_model(model_type, **{**SIZES, **NOISY[model_type]})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(config, attn_implementation=attn)
        for parameter in lm.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
    if checkpointing:
        _enable_gradient_checkpointing(model_type, lm)
    return lm


def logits_and_gradients(lm: nn.Module) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Of one pass, and how often the layers' linear maps were computed."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hooks = [
        module.register_forward_hook(count) for name, module in lm.named_modules() if ".0." in name
    ]
    logits = lm(input_ids=TOKENS, use_cache=False).logits
    trained = [p for p in lm.parameters() if p.requires_grad]
    found = torch.autograd.grad(logits.square().mean(), trained, allow_unused=True)
    gradients = [g for g in found if g is not None]
    for hook in hooks:
        hook.remove()
    return logits.detach(), gradients, calls


@pytest.mark.parametrize("model_type", NOISY)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_a_backbone_computes_as_in_eval_mode(
    model_type: str, attn: str, checkpointing: bool
) -> None:
    lm = noisy(model_type, "eager" if model_type == "gpt_neo" else attn, checkpointing)
    expected, expected_gradients, once = logits_and_gradients(lm.eval())
    train_without_dropout(lm)
    logits, gradients, calls = logits_and_gradients(lm)
    assert torch.equal(logits, expected)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(gradient, wanted)
    assert once > 0 and (calls > once if checkpointing else calls == once)
    # control: training mode as it is
    assert not torch.allclose(logits_and_gradients(lm.train())[0], expected, atol=1e-3)
    # a copy, as ZeRO-3 makes them, computes with its own layers
    copied = copy.deepcopy(lm)
    train_without_dropout(lm)
    train_without_dropout(copied)
    lm.requires_grad_(False)
    assert torch.equal(logits_and_gradients(copied)[0], expected)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_the_adapters_own_dropout_stays(checkpointing: bool) -> None:
    lm = add_lora(
        noisy("gpt2", checkpointing=checkpointing),
        r=2,
        alpha=8,
        dropout=0.5,
        target_modules="all-linear",
        seed=0,
    )
    train_without_dropout(lm)
    with reference_context(lm):
        reference = lm(input_ids=TOKENS).logits
    first, gradients, _ = logits_and_gradients(lm)
    assert torch.equal(first, reference)  # the update is zero whatever is dropped
    assert any(gradient.abs().max() > 0 for gradient in gradients)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    torch.manual_seed(0)
    one, other = logits_and_gradients(lm)[0], logits_and_gradients(lm)[0]
    assert not torch.allclose(one, other, atol=1e-3)
    with reference_context(lm):
        assert torch.equal(lm(input_ids=TOKENS).logits, reference)
    torch.manual_seed(0)
    assert torch.equal(logits_and_gradients(lm)[0], one)  # the context has left the modes alone


def test_modes_are_kept_module_by_module() -> None:
    pair = nn.Sequential(nn.Dropout(), nn.Linear(1, 1)).train()
    pair[0].eval()
    with pytest.raises(KeyError), restore_modes(pair):
        pair.train(False)
        raise KeyError
    assert [module.training for module in pair.modules()] == [True, False, True]
