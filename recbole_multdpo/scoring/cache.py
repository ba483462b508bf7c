"""The key-value cache of ranking: a prompt once, then nodes of the trie under masks of our own."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from recbole_multdpo.errors import ConfigError


def check_attention(model: PreTrainedModel) -> None:
    """Refuse a model that would not attend as the trie's mask says.

    Raises:
        ValueError: it is in training mode.
        ConfigError: its attention takes no additive mask.
    """
    if model.training:
        raise ValueError("ranking needs the model in eval mode; call lm.eval() first.")
    implementation = model.config._attn_implementation
    if implementation not in ("sdpa", "eager"):
        raise ConfigError(
            f"attn_implementation={implementation!r} takes no additive 4-D mask; ranking needs "
            "'sdpa' or 'eager'."
        )


class BufferedLayer(DynamicLayer):
    """One layer's keys and values [B, heads, length, head_dim] in a buffer with room to grow.

    transformers' own dynamic layer concatenates, which copies the whole cache at every step: 15 %
    of the search's time with the million-parameter model on a CPU.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append and return everything held so far."""
        start, self.length = self.length, self.length + key_states.shape[2]
        if not self.is_initialized:
            self.key_buffer = key_states.new_empty(0)
            self.value_buffer = value_states.new_empty(0)
            self.is_initialized = True
        self.key_buffer = _append(self.key_buffer, key_states, start)
        self.value_buffer = _append(self.value_buffer, value_states, start)
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows, in place: `indices` are ordered as `compacted` does."""
        self.key_buffer = _select(self.key_buffer, indices)
        self.value_buffer = _select(self.value_buffer, indices)
        self._show()

    def crop(self, max_length: int) -> None:
        """Forget what was appended after the first `max_length` positions."""
        self.length = max_length
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys = self.key_buffer[:, :, : self.length]
        values = self.value_buffer[:, :, : self.length]
        self.keys, self.values = keys, values
        return keys, values


def _append(buffer: Tensor, states: Tensor, start: int) -> Tensor:
    """Write states [B, heads, m, head_dim] at `start`, into a buffer twice as long if need be."""
    stop = start + states.shape[2]
    if buffer.ndim == 1 or buffer.shape[2] < stop:
        larger = states.new_empty(*states.shape[:2], 2 * stop, *states.shape[3:])
        if start:
            larger[:, :, :start] = buffer[:, :, :start]
        buffer = larger
    buffer[:, :, start:stop] = states
    return buffer


def _select(buffer: Tensor, indices: Tensor) -> Tensor:
    """Move the rows that have to move into the first `len(indices)` places, and cut there."""
    places = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
    buffer[places] = buffer[indices[places]]
    return buffer[: len(indices)]


def cache_argument(model: nn.Module) -> str:
    """The argument of a model's forward that takes a cache of keys and values.

    transformers 5.24 calls it `cache`; before, and in models whose code comes with their weights,
    it is `past_key_values`.
    """
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
