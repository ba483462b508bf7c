"""The last layer at scored positions alone equals the whole pass in values and all gradients.

The twin is `packed_logps` with the body's own forward pass.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.model.tiny import make_tiny_backbone
from recbole_multdpo.scoring import last_layer, prompt_pass
from recbole_multdpo.scoring import packed as packed_module
from recbole_multdpo.scoring.cache import BufferedLayer
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.packed import PackedExamples
from recbole_multdpo.scoring.parts import parts_of
from tests.scoring.architectures import (
    ARCHITECTURES,
    CANDIDATES,
    ITEMS,
    PROMPTS,
    WINDOW,
    Architecture,
    direct_logps,
    with_adapter,
)

SERVED = ("llama", "mistral", "qwen2", "qwen3")
# texts of one token: no candidate token is fed
TITLE_TOKENS = ItemTokens.from_lists([[], *([token] for token in (40, 7, 9, 50, 51, 8))])
ALL_PADDING = torch.zeros(3, 2, dtype=torch.long)


def build(kind: str, attn: str = "sdpa", **options: object) -> nn.Module:
    """A model of few layers without windows, unless the options say so."""
    no_window = {"mistral": {"sliding_window": None}}.get(kind, {})
    return Architecture(kind, kind, {**no_window, **options}).build(attn)


def logps_and_gradient(
    lm: nn.Module, packed: PackedExamples, monkeypatch: pytest.MonkeyPatch, *, skip: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of candidates and prompts, and the gradient of a sum with weights."""
    lm.zero_grad()
    with monkeypatch.context() as patch:
        if not skip:
            patch.setattr(
                packed_module, "parts_of", lambda model: replace(parts_of(model), can_skip=False)
            )
        logps, prompt_logps = packed.logps_with_prompt(lm)
    values = torch.cat([logps.flatten(), prompt_logps])
    (values * torch.linspace(-1, 2, len(values))).sum().backward()
    gradients = [
        torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
        for p in lm.parameters()
        if p.requires_grad
    ]
    return values.detach(), torch.cat(gradients).clone()


def check_equal(
    lm: nn.Module,
    packed: PackedExamples,
    monkeypatch: pytest.MonkeyPatch,
    *,
    tolerance: float = 2e-6,
) -> None:
    assert parts_of(causal_lm(lm)).can_skip
    values, gradient = logps_and_gradient(lm, packed, monkeypatch, skip=True)
    expected, expected_gradient = logps_and_gradient(lm, packed, monkeypatch, skip=False)
    torch.testing.assert_close(values, expected, rtol=tolerance, atol=10 * tolerance)
    assert (gradient - expected_gradient).norm() <= tolerance * expected_gradient.norm()


@pytest.fixture(scope="module")
def packed() -> dict[str, PackedExamples]:
    """Examples of several kinds, with padding between and behind candidates."""
    return {
        "texts": PackedExamples.of(PROMPTS, CANDIDATES, ITEMS),
        "titles": PackedExamples.of(PROMPTS, CANDIDATES, TITLE_TOKENS),
        "prompts": PackedExamples.of(PROMPTS, CANDIDATES, ITEMS, with_prompt=True),
        "padding": PackedExamples.of(PROMPTS, ALL_PADDING, ITEMS),
    }


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", SERVED)
def test_values_and_gradients(kind, layers, attn, packed, monkeypatch):
    """Grouped queries throughout: four heads of queries, two of keys."""
    lm = build(kind, attn, num_hidden_layers=layers)
    for examples in packed.values():
        check_equal(lm, examples, monkeypatch)


@pytest.mark.parametrize("kind", SERVED)
def test_values_and_gradients_with_lora(kind, packed, monkeypatch):
    check_equal(with_adapter(build(kind)), packed["texts"], monkeypatch)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("lora", [False, True])
def test_gradients_of_layers_that_are_computed_again(packed, monkeypatch, lora):
    lm = build("qwen3", num_hidden_layers=3)
    lm.gradient_checkpointing_enable({"use_reentrant": False})
    lm = (with_adapter(lm) if lora else lm).train()
    check_equal(lm, packed["texts"], monkeypatch)
    check_equal(lm, packed["titles"], monkeypatch)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mistral", {"sliding_window": WINDOW}),
        (
            "qwen2",
            {
                "num_hidden_layers": 3,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "full_attention", "sliding_attention"],
            },
        ),
    ],
)
def test_windows(kind, options, packed, monkeypatch):
    """Of all layers, and of the last one alone."""
    lm = build(kind, **options)
    for examples in packed.values():
        check_equal(lm, examples, monkeypatch)


def test_in_bfloat16_only_the_order_of_rounding_differs(packed, monkeypatch):
    """Stated in docs/performance.md: 8 bits of a mantissa are 4e-3."""
    for kind in SERVED:
        check_equal(build(kind).bfloat16(), packed["texts"], monkeypatch, tolerance=2e-2)


def test_one_token_titles_need_no_mask(packed, monkeypatch):
    """Attention is causal, and sdpa skips what is hidden. Control: it would not do for texts."""
    lm = build("qwen2")
    masks = []
    block_mask = packed_module.block_mask
    monkeypatch.setattr(
        packed_module, "block_mask", lambda *args: (masks.append(1), block_mask(*args))[1]
    )
    with torch.no_grad():
        packed["titles"].logps(lm)
        assert not masks
        right = packed["texts"].logps(lm)
        assert masks
        texts = packed["texts"]
        without = replace(texts, inputs=replace(texts.inputs, is_causal=True)).logps(lm)
    assert (without - right).abs().max() > 0.01


def test_other_positions_are_wrong(packed):
    lm = build("llama")
    examples = packed["texts"]
    with torch.no_grad():
        right = examples.logps(lm)
        wrong = replace(examples, columns=examples.columns.roll(1, 1)).logps(lm)
    assert (wrong - right).abs().max() > 0.01


# ------------------------------------------------------------------------------------- admission


@pytest.mark.parametrize("row", ARCHITECTURES, ids=[row.name for row in ARCHITECTURES])
def test_who_is_served(row):
    """Llama, Mistral, Qwen2 and Qwen3; not Phi-3, OLMo 2, GPT-2, Gemma, Granite and all others."""
    if row.kind in CONFIG_MAPPING and not row.why_refused:
        found = parts_of(row.build(row.attention[0])).can_skip
        assert found == (row.kind in SERVED and "text_config" not in row.options), row.name


def test_tiny_is_served():
    """No version of transformers makes the default backbone slower without a word."""
    lm, _ = make_tiny_backbone(["a", "b"], hidden_size=32, num_layers=1, num_heads=2, seed=0)
    assert parts_of(lm).can_skip


def test_a_vocabulary_of_five():
    assert parts_of(build("llama", vocab_size=5)).can_skip


def test_a_changed_layer_falls_back_to_the_whole_pass(packed, monkeypatch):
    """A version of transformers that computes a layer otherwise, or has other names in it."""
    forward = Qwen2DecoderLayer.forward
    with monkeypatch.context() as patch:
        patch.setattr(
            Qwen2DecoderLayer,
            "forward",
            lambda self, hidden, **kwargs: hidden + forward(self, hidden, **kwargs),
        )
        lm = build("qwen2")
        assert not parts_of(lm).can_skip
        with torch.no_grad():
            torch.testing.assert_close(
                packed["texts"].logps(lm), direct_logps(lm, CANDIDATES), rtol=1e-5, atol=1e-4
            )
    body = build("qwen2").model
    assert last_layer.serves(body)

    def renamed(layer, *args):
        return layer.a_part_of_the_next_version

    monkeypatch.setattr(last_layer, "_layer_at", renamed)
    assert not last_layer.serves(body)


def test_a_class_of_remote_code_is_not_served():
    lm = build("qwen2")
    kind = type(lm.model)
    lm.model.__class__ = type(kind.__name__, (kind,), {"__module__": "transformers_modules.own"})
    assert not parts_of(lm).can_skip


# --------------------------------------------------------------------------------------- ranking


@pytest.mark.parametrize("kind", SERVED)
def test_the_prompts_of_a_ranking(kind, monkeypatch):
    """States at their ends, and the keys and values in the cache, as of the whole pass."""
    lm = build(kind, num_hidden_layers=3)
    found = []
    for can_skip in (True, False):
        monkeypatch.setattr(
            prompt_pass,
            "parts_of",
            lambda model, can_skip=can_skip: replace(parts_of(model), can_skip=can_skip),
        )
        cache = Cache(layer_class_to_replicate=BufferedLayer)
        with torch.no_grad():
            states = prompt_pass.states_at_ends(lm, PROMPTS, cache)
        layers = [
            [buffer[:, :, : layer.length] for buffer in (layer.key_buffer, layer.value_buffer)]
            for layer in cache.layers
        ]
        found.append((states, layers))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    assert len(found[0][1]) == 3 and found[0][0].shape == (3, 32)
