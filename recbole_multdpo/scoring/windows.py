"""Attention masks for layers with a sliding window or chunked attention.

transformers derives such masks from a mask of valid columns, by the index of a column. Scoring
passes 4-D masks, which transformers applies unchanged in all layers; and in a packed row, as in the
cache of a search, the index of a column is not the position of its token. So the masks are
restricted here, by position:

- `sliding_attention`: the key is less than `sliding_window` positions before the query;
- `chunked_attention`: key and query are in the same chunk of `attention_chunk_size` positions;
- anything else: no restriction.

A backbone with several kinds of layers takes one mask per kind, otherwise a single mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from recbole_multdpo.scoring.cache import aligned

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


def aligned_copy(mask: Tensor) -> Tensor:
    """Copy of a mask [..., K] whose rows are `aligned` in memory."""
    width = mask.shape[-1]
    stride = aligned(width, mask.device)
    return mask.new_empty(*mask.shape[:-1], stride)[..., :width].copy_(mask)


@dataclass(frozen=True)
class LayerKinds:
    """The kinds of attention layers of a backbone, and their windows.

    Attributes:
        kinds: distinct values of the configuration's `layer_types`.
        window: positions of `sliding_attention`, including the query's own.
        chunk: positions of `chunked_attention`.
    """

    kinds: tuple[str, ...]
    window: int | None
    chunk: int | None

    @classmethod
    def of(cls, config: PretrainedConfig) -> LayerKinds:
        """Read a configuration like transformers' `create_masks_for_generate`.

        In a composite configuration the text part counts. Without a list of layer types all layers
        are alike: sliding if there is a window, else chunked if there is a chunk size.
        """
        text = config.get_text_config()
        window = getattr(text, "sliding_window", None)
        chunk = getattr(text, "attention_chunk_size", None)
        kinds = getattr(text, "layer_types", None)
        if not kinds:
            kinds = [SLIDING if window else CHUNKED if chunk else FULL]
        return cls(tuple(sorted(set(kinds))), window, chunk)

    @property
    def has_windows(self) -> bool:
        """True if some layer's attention is restricted in sufficiently long sequences."""
        return bool(self._reach)

    @property
    def _reach(self) -> dict[str, int]:
        """Window size in positions of each restricted kind of layer."""
        reach = {SLIDING: self.window, CHUNKED: self.chunk}
        return {kind: most for kind in self.kinds if (most := reach.get(kind))}

    def masks(
        self,
        mask: Tensor,
        query_positions: Tensor,
        key_positions: Tensor,
        longest: int | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """The `attention_mask` argument for the backbone; `mask` itself if no window applies.

        Args:
            mask: additive, [B, 1, Q, K], 0 where visible.
            query_positions: long [B, Q].
            key_positions: long [B, K]; ignored at keys that are not visible.
            longest: no query's position reaches it; None asks the device.
        """
        if not self._reach:
            return mask
        if longest is None:
            longest = int(query_positions.max()) + 1
        cut = {kind: most for kind, most in self._reach.items() if most < longest}
        if not cut:
            return mask
        lowest = torch.finfo(mask.dtype).min
        by_kind = {kind: mask for kind in (FULL, *self.kinds)}
        for kind, most in cut.items():
            query, key = query_positions[:, None, :, None], key_positions[:, None, None, :]
            if kind == SLIDING:
                hidden = key <= query - most
            else:
                hidden = key // most != query // most
            by_kind[kind] = aligned_copy(mask).masked_fill_(hidden, lowest)
        return by_kind if len(self.kinds) > 1 else by_kind[self.kinds[0]]
