"""Attention masks for layers that look back a part of the way only.

transformers makes such masks itself from a mask of valid columns, by the place of a column. Scoring
passes masks of its own, which transformers takes as they are, for all layers; and in a packed row,
as in the cache of a search, the place of a column is not the position of its token. So what a layer
may see of the past is cut out of the mask here, by position:

- `sliding_attention`: the key stands less than `sliding_window` positions before the query;
- `chunked_attention`: both stand in the same chunk of `attention_chunk_size` positions;
- anything else: all.

A backbone whose layers differ takes one mask per kind of layer; one whose layers are alike takes
one mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


@dataclass(frozen=True)
class LayerKinds:
    """The kinds of layers of a backbone, and how far those look back that do not see all.

    Attributes:
        kinds: as in the configuration's `layer_types`.
        window: of `sliding_attention`, positions, the query's own included.
        chunk: of `chunked_attention`, positions.
    """

    kinds: tuple[str, ...]
    window: int | None
    chunk: int | None

    @classmethod
    def of(cls, config: PretrainedConfig) -> LayerKinds:
        """Read a configuration by the rule of transformers' `create_masks_for_generate`.

        A composite configuration has them in the part about text. Without a list of layer types all
        layers are alike: windowed if there is a window, otherwise chunked if there are chunks.
        """
        text = config.get_text_config()
        window = getattr(text, "sliding_window", None)
        chunk = getattr(text, "attention_chunk_size", None)
        kinds = getattr(text, "layer_types", None)
        if not kinds:
            kinds = [SLIDING if window else CHUNKED if chunk else FULL]
        return cls(tuple(sorted(set(kinds))), window, chunk)

    @property
    def some_look_back_less(self) -> bool:
        """Whether any layer does not see all, in a sequence that is long enough."""
        return bool(self._reach)

    @property
    def _reach(self) -> dict[str, int]:
        """Positions that the layers of a kind can see at most, for those that do not see all."""
        reach = {SLIDING: self.window, CHUNKED: self.chunk}
        return {kind: most for kind in self.kinds if (most := reach.get(kind))}

    def masks(
        self, mask: Tensor, query_positions: Tensor, key_positions: Tensor
    ) -> Tensor | dict[str, Tensor]:
        """What to pass as `attention_mask`: `mask` itself where all layers see all that it shows.

        Args:
            mask: additive, [B, 1, Q, K], 0 where visible.
            query_positions: long [B, Q].
            key_positions: long [B, K]; anything where the mask shows nothing.
        """
        if not self._reach:
            return mask
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
            by_kind[kind] = mask.masked_fill(hidden, lowest)
        return by_kind if len(self.kinds) > 1 else by_kind[self.kinds[0]]
