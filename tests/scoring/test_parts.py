"""Body and head of a model, found by running it: logits of selected states are the model's own."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.model.backbone import add_lora
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.parts import OwnHead, parts_of

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GEMMA = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 5.0}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "is_decoder": True}
# what the body is called, and whether the output embeddings are all of the head
PLAIN = {
    "llama": ("model", SIZES),
    "opt": ("model.decoder", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt2": ("transformer", {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "granite": ("model", {**SIZES, "logits_scaling": 1.0}),
    # its own forward does not cap
    "gemma3": ("model", {"text_config": GEMMA, "vision_config": VISION}),
}
OWN = {
    "granite": ("model", {**SIZES, "logits_scaling": 1.02}),
    "cohere": ("model", {**SIZES, "logit_scale": 0.25}),
    "gemma3_text": ("model", GEMMA),
    "modernbert-decoder": ("model", SIZES),
    "bert": ("bert", {**SIZES, **NO_DROPOUT}),
    "electra": ("electra", {**SIZES, **NO_DROPOUT, "embedding_size": 16}),
}
BOTH = [pytest.param(kind, *PLAIN[kind], True, id=f"{kind}-plain") for kind in PLAIN]
BOTH += [pytest.param(kind, *OWN[kind], False, id=f"{kind}-own") for kind in OWN]
IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])


def build(kind, options, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options), dtype=dtype)
        for parameter in lm.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
    return lm.eval()


def gradients(loss, lm):
    lm.zero_grad(set_to_none=True)
    loss.backward()
    return {n: p.grad for n, p in lm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("kind", "path", "options", "is_plain"), BOTH)
def test_body_and_head_make_the_models_own_logits_and_gradients(kind, path, options, is_plain):
    lm = build(kind, options)
    parts = parts_of(lm)
    assert parts.body is lm.get_submodule(path)
    assert (parts.head is lm.get_output_embeddings()) == is_plain
    chosen = torch.tensor([9, 1, 6])  # of the ten positions
    weights = torch.randn(3, 60, generator=torch.Generator().manual_seed(1))

    own = lm(input_ids=IDS, use_cache=False).logits.flatten(0, 1)[chosen]
    expected = gradients((own.log_softmax(-1) * weights).sum(), lm)
    hidden = parts.body(input_ids=IDS, use_cache=False).last_hidden_state.flatten(0, 1)
    logits = parts.head(hidden[chosen])
    found = gradients((logits.log_softmax(-1) * weights).sum(), lm)

    torch.testing.assert_close(logits, own, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * largest)
    if not is_plain:  # control: the output embeddings alone make other logits, or none
        try:
            alone = lm.get_output_embeddings()(hidden[chosen])
        except RuntimeError:
            return
        assert (alone.log_softmax(-1) - own.log_softmax(-1)).abs().max() > 1e-3


def test_a_weak_scale_is_found_in_bfloat16():
    scaled = build("granite", {**SIZES, "logits_scaling": 1.02}, torch.bfloat16)
    plain = build("granite", {**SIZES, "logits_scaling": 1.0}, torch.bfloat16)
    assert isinstance(parts_of(scaled).head, OwnHead)
    assert parts_of(plain).head is plain.get_output_embeddings()


class Scaled(LlamaForCausalLM):
    """Its logits have a trainable factor."""

    def __init__(self, config):
        super().__init__(config)
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * self.factor
        return output


def test_a_trained_scale_that_is_still_one_gets_its_gradient():
    lm = Scaled(LlamaConfig(**SIZES))
    parts = parts_of(lm)
    hidden = parts.body(input_ids=IDS).last_hidden_state[0]
    parts.head(hidden).log_softmax(-1)[:, 3].sum().backward()
    found = lm.factor.grad.clone()
    lm.zero_grad()
    lm(input_ids=IDS[:1]).logits[0].log_softmax(-1)[:, 3].sum().backward()
    torch.testing.assert_close(found, lm.factor.grad)
    assert found != 0


@pytest.mark.parametrize(("kind", "options"), [("llama", SIZES), ("gemma3_text", GEMMA)])
def test_adapters_of_body_and_head_take_part(kind, options):
    lm = build(kind, {**options, "tie_word_embeddings": False})
    model = add_lora(lm, r=2, alpha=8, dropout=0.0, target_modules=["q_proj", "lm_head"], seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    with torch.no_grad():
        parts = parts_of(causal_lm(model))
        found = parts.head(parts.body(input_ids=IDS).last_hidden_state[0])
        own = model(input_ids=IDS).logits[0]
        torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-5)
        with model.disable_adapter():
            assert (model(input_ids=IDS).logits[0] - own).abs().max() > 0.1


def test_finding_the_parts_leaves_no_trace():
    """Modes and random state stay the same, even in training with dropout; no hook is left."""
    lm = build("gpt2", {**PLAIN["gpt2"][1], "resid_pdrop": 0.5}).train()
    lm.transformer.h[0].eval()
    modes = [module.training for module in lm.modules()]
    before = torch.get_rng_state()
    parts_of(lm)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in lm.modules()] == modes
    assert not any(module._forward_hooks for module in lm.modules())


def test_a_copy_has_parts_of_its_own_without_another_run():
    lm = build("gemma3_text", GEMMA)
    parts_of(lm)
    copied = copy.deepcopy(lm)
    calls = []
    copied.model.register_forward_pre_hook(lambda *_: calls.append(1))
    parts = parts_of(copied)
    assert not calls and parts.body is copied.model
    with torch.no_grad():
        copied.lm_head.weight.zero_()
        assert (parts.head(torch.ones(2, 32)) == 0).all()
        assert (parts_of(lm).head(torch.ones(2, 32)) != 0).any()


def test_the_model_itself_is_not_changed_by_its_own_head():
    lm = build("gemma3_text", GEMMA)
    parts = parts_of(lm)
    parts.head(torch.ones(2, 32))
    assert lm.model is parts.body and lm(input_ids=IDS).logits.shape == (2, 5, 60)


class Bodiless(PreTrainedModel):
    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(5, 5)

    def forward(self, input_ids, use_cache=None):
        return CausalLMOutput(logits=self.table(input_ids))


def test_a_model_without_a_body_is_refused():
    with pytest.raises(ConfigError, match="Bodiless, has no part that returns hidden states"):
        parts_of(Bodiless(PretrainedConfig()))
