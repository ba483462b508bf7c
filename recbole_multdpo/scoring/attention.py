"""Attention with a mask for grouped heads, without a copy of keys and values per query head.

Where several query heads share keys and values, transformers' "sdpa" attention repeats both for
every query head if there is a mask: 7 copies of the cache in each layer of Qwen2.5-0.5B. Here the
queries of a group are the rows of one head: [B, kv_heads * groups, m, D] becomes
[B, kv_heads, groups * m, D], and the mask is repeated instead, once for all layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SDPA = "sdpa"


@contextmanager
def grouped_heads() -> Iterator[None]:
    """Replace transformers' "sdpa" attention for the calls within, with equal values."""
    given = ALL_ATTENTION_FUNCTIONS[SDPA]
    last: tuple[Tensor, Tensor] | None = None  # a mask and the same for grouped queries

    def attention(
        module: nn.Module,
        query: Tensor,  # [B, heads, m, D]
        key: Tensor,  # [B, kv_heads, S, D]
        value: Tensor,
        attention_mask: Tensor | None,  # [B, 1, m, S]
        dropout: float = 0.0,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, Any]:
        nonlocal last
        n_heads, n_queries, kv_heads = query.shape[1], query.shape[2], key.shape[1]
        is_shared = attention_mask is not None and attention_mask.shape[1:3] == (1, n_queries)
        unusual = any(options.get(name) is not None for name in ("position_bias", "softcap"))
        if n_heads == kv_heads or not is_shared or unusual:
            return given(
                module,
                query,
                key,
                value,
                attention_mask,
                dropout=dropout,
                scaling=scaling,
                **options,
            )
        assert attention_mask is not None
        known = last  # another thread may replace it at any time
        if known is None or known[0] is not attention_mask:
            known = attention_mask, attention_mask.repeat(1, 1, n_heads // kv_heads, 1)
            last = known
        grouped = query.reshape(len(query), kv_heads, -1, query.shape[-1])
        found = F.scaled_dot_product_attention(
            grouped, key, value, attn_mask=known[1], dropout_p=dropout, scale=scaling
        )
        found = found.reshape(len(query), n_heads, n_queries, -1)
        return found.transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS[SDPA] = attention
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[SDPA] = given
