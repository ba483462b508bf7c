"""The body of a causal LM whose last layer runs only at the positions that something reads.

The head reads few positions of the last layer; of all others the layer's attention needs the keys
and values only. So its queries, attention output and MLP are computed at the read positions alone:
half of the operations of a body of two layers, 1/24 of one of 24. Values and gradients are those of
the body's own forward pass.

Only architectures that were compared with that pass are served, and each model must pass a trial.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from recbole_multdpo.scoring.cache import cache_argument

# equal layers of RMS norm, attention, RMS norm and MLP; the tests compare values and gradients
SERVED = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")
# difference to the whole pass over the largest value: rounding, by the weights' dtype
_TOLERANCE, _TOLERANCE_16_BIT = 1e-4, 0.05


def hidden_at(
    body: Any,
    input_ids: Tensor,
    position_ids: Tensor,
    mask: Tensor | dict[str, Tensor] | None,
    read: Tensor,
    cache: Cache | None = None,
) -> Tensor:
    """Last hidden states of B rows of L tokens at some positions.

    Args:
        body: a body that `serves` accepts.
        input_ids: long [B, L].
        position_ids: long [B, L].
        mask: additive attention mask [B, 1, L, L], or one by kind of layer. None, with `sdpa` only,
            for a causal one: attention then skips what is hidden.
        read: long [B, S], flat indices [B * L] of positions of the row.
        cache: takes the keys and values of all positions; None for no cache.

    Returns:
        [B, S, H].
    """
    hidden = body.embed_tokens(input_ids)
    rotary = body.rotary_emb(hidden, position_ids)
    kinds: Any = getattr(body.config, "layer_types", None)
    caching = {} if cache is None else {cache_argument(body.layers[0]): cache, "use_cache": True}
    *layers, last = body.layers
    for number, layer in enumerate(layers):
        hidden = layer(
            hidden,
            attention_mask=mask[kinds[number]] if isinstance(mask, dict) else mask,
            position_embeddings=rotary,
            position_ids=position_ids,
            **caching,
        )
    of_last = mask[kinds[-1]] if isinstance(mask, dict) else mask
    return body.norm(_layer_at(last, hidden, of_last, rotary, read, cache))


def _layer_at(
    layer: Any,
    hidden: Tensor,
    mask: Tensor | None,
    rotary: tuple[Tensor, Tensor],
    read: Tensor,
    cache: Cache | None,
) -> Tensor:
    """A layer's output [B, S, H] at flat positions `read` [B, S] of `hidden` [B, L, H]."""
    attention = layer.self_attn

    def heads(name: str, inputs: Tensor) -> Tensor:
        projected = getattr(attention, f"{name}_proj")(inputs)
        by_head = projected.unflatten(-1, (-1, attention.head_dim))
        norm = getattr(attention, f"{name}_norm", None)  # Qwen3's
        return (by_head if norm is None else norm(by_head)).transpose(1, 2)

    normed = layer.input_layernorm(hidden)
    query = _rotated(heads("q", _at(normed, read)), *(_at(part, read) for part in rotary))
    key, value = _rotated(heads("k", normed), *rotary), heads("v", normed)
    if cache is not None:
        key, value = cache.update(key, value, attention.layer_idx)
    eager = sys.modules[type(attention).__module__].eager_attention_forward
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager)
    found, _ = attend(
        attention,
        query,
        key,
        value,
        _mask_at(mask, hidden, read),
        dropout=attention.attention_dropout if attention.training else 0.0,
        scaling=attention.scaling,
    )
    hidden = _at(hidden, read) + attention.o_proj(found.flatten(2))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _mask_at(mask: Tensor | None, hidden: Tensor, read: Tensor) -> Tensor:
    """The mask's rows [B, 1, S, L] at flat positions `read` [B, S]; None is the causal mask."""
    if mask is not None:
        return _at(mask[:, 0], read)[:, None]
    width = hidden.shape[1]
    later = torch.arange(width, device=hidden.device) > (read % width)[:, None, :, None]
    rows = torch.zeros(later.shape, dtype=hidden.dtype, device=hidden.device)
    return rows.masked_fill_(later, torch.finfo(hidden.dtype).min)


def _at(values: Tensor, read: Tensor) -> Tensor:
    """Values [B, L, N] at flat positions `read` [B, S]: [B, S, N]; B may be 1 in `values`."""
    values = values.expand(len(read), -1, -1)
    return values.flatten(0, 1).index_select(0, read.flatten()).unflatten(0, read.shape)


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of states [B, heads, n, D] by cos and sin [B, n, D]."""
    first, second = states.chunk(2, -1)
    return states * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]


@torch.no_grad()
def serves(body: nn.Module) -> bool:
    """True if `hidden_at` may stand for the body's own forward pass: by its class, and by trial.

    The body must be in eval mode.
    """
    kind = type(body)
    if kind.__name__ not in SERVED or not kind.__module__.startswith("transformers."):
        return False
    try:
        return _equals(body)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # parts have other names
        return False


def _equals(body: Any) -> bool:
    """Compare a few positions of eight tokens with the whole forward pass."""
    device = body.embed_tokens.weight.device
    ids = torch.arange(1, 9, device=device).view(2, 4) % body.embed_tokens.num_embeddings
    positions = torch.arange(4, device=device).expand(2, 4)
    mask = torch.full((2, 1, 4, 4), torch.finfo(body.dtype).min, dtype=body.dtype, device=device)
    mask = mask.triu(1)
    read = torch.tensor([[1, 3], [6, 4]], device=device)
    whole = body(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    expected = _at(whole.last_hidden_state, read)
    found = hidden_at(body, ids, positions, mask, read)
    tolerance = _TOLERANCE if body.dtype.itemsize > 2 else _TOLERANCE_16_BIT
    return bool((expected - found).abs().max() <= tolerance * expected.abs().max())
