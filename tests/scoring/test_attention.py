"""Grouped heads against transformers' own attention, which repeats keys and values."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from recbole_multdpo.scoring.attention import grouped_heads
from tests.scoring.test_best_first import tiny_lm


def masked_pass(lm, context):  # type: ignore[no-untyped-def]
    """Hidden states [2, 6, H] under a random mask, and the gradient of every parameter."""
    torch.manual_seed(1)
    ids = torch.randint(2, 20, (2, 6))
    visible = torch.rand(2, 1, 6, 6).tril() > 0.3
    visible |= torch.eye(6, dtype=torch.bool)
    mask = torch.zeros(visible.shape, dtype=lm.dtype).masked_fill(
        ~visible, torch.finfo(lm.dtype).min
    )
    lm.zero_grad()
    with context:
        hidden = lm.model(input_ids=ids, attention_mask=mask).last_hidden_state
    (hidden * torch.randn(hidden.shape, dtype=lm.dtype)).sum().backward()
    grads = [weight.grad for weight in lm.model.parameters()]
    return hidden.detach(), grads


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_values_and_gradients_are_those_of_repeated_heads(architecture):
    lm = tiny_lm(architecture)
    expected, expected_grads = masked_pass(lm, nullcontext())
    found, grads = masked_pass(lm, grouped_heads())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_of_a_lower_precision(dtype):
    """On a CPU the same products in the same order."""
    lm = tiny_lm(dtype=dtype)
    expected, _ = masked_pass(lm, nullcontext())
    found, _ = masked_pass(lm, grouped_heads())
    torch.testing.assert_close(found, expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_no_key_is_repeated_and_the_mask_once_for_all_layers(monkeypatch):
    """Two of four heads hold keys; outside of the context, each of the four does."""
    seen = []
    given = F.scaled_dot_product_attention

    def watched(query, key, value, attn_mask=None, **options):  # type: ignore[no-untyped-def]
        seen.append((key.shape[1], tuple(attn_mask.shape), attn_mask.data_ptr()))
        return given(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    lm = tiny_lm()
    masked_pass(lm, grouped_heads())
    assert [(heads, mask) for heads, mask, _ in seen] == [(2, (2, 1, 12, 6))] * 2
    assert len({address for *_, address in seen}) == 1
    seen.clear()
    masked_pass(lm, nullcontext())
    assert [(heads, mask) for heads, mask, _ in seen] == [(4, (2, 1, 6, 6))] * 2


def test_attention_without_a_mask_and_heads_of_their_own_are_left_alone(monkeypatch):
    calls = []
    given = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def watched(*args, **options):  # type: ignore[no-untyped-def]
        calls.append(args[1].shape[2])
        return given(*args, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", watched)
    lm = tiny_lm()
    with grouped_heads():
        lm.model(input_ids=torch.full((1, 3), 5))
    assert calls == [3, 3]
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is watched


def test_threads_that_rank_at_once_keep_their_masks():
    """A second thread calls attention with its own mask in the middle of a call."""

    class Interrupted(torch.Tensor):
        def reshape(self, *shape):  # type: ignore[no-untyped-def]
            if self.shape == query.shape:
                attend(self.as_subclass(torch.Tensor), torch.zeros(1, 1, 3, 3))
            return super().reshape(*shape)

    def attend(query, mask):  # type: ignore[no-untyped-def]
        return ALL_ATTENTION_FUNCTIONS["sdpa"](lm.model, query, keys, keys, mask)[0]

    lm = tiny_lm()
    keys, query = torch.randn(1, 2, 3, 8), torch.randn(1, 4, 3, 8)
    mask = torch.full((1, 1, 3, 3), -1e9).triu(1)
    with grouped_heads():
        expected, all_visible = attend(query, mask), attend(query, torch.zeros_like(mask))
        found = attend(query.as_subclass(Interrupted), mask.clone())
    assert torch.equal(found.as_subclass(torch.Tensor), expected)
    assert not torch.equal(expected, all_visible)


def test_an_error_within_restores_the_attention():
    given = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with pytest.raises(KeyError), grouped_heads(), grouped_heads():
        raise KeyError
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is given
