"""The key-value cache of ranking, for a prompt and then nodes of the trie."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from recbole_multdpo.errors import ConfigError


def check_attention(model: PreTrainedModel) -> None:
    """Refuse a model that would not follow the trie's attention mask.

    Raises:
        ValueError: the model is in training mode.
        ConfigError: its attention implementation takes no additive mask.
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
    """One layer's keys and values [B, heads, length, head_dim] in a growing buffer.

    transformers' own dynamic layer concatenates, copying the whole cache at every step: 15 % of the
    search's time with the million-parameter model on a CPU.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append, and return all keys and values."""
        start, self.length = self.length, self.length + key_states.shape[2]
        if not self.is_initialized:
            self.key_buffer = key_states.new_empty(0)
            self.value_buffer = value_states.new_empty(0)
            self.is_initialized = True
        self.key_buffer = _append(self.key_buffer, key_states, start)
        self.value_buffer = _append(self.value_buffer, value_states, start)
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices`, ordered as by `compacted`, in place."""
        self.key_buffer = _select(self.key_buffer, indices)
        self.value_buffer = _select(self.value_buffer, indices)
        self._show()

    def crop(self, max_length: int) -> None:
        """Drop all positions after the first `max_length`."""
        self.length = max_length
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys = self.key_buffer[:, :, : self.length]
        values = self.value_buffer[:, :, : self.length]
        self.keys, self.values = keys, values
        return keys, values


def _append(buffer: Tensor, states: Tensor, start: int) -> Tensor:
    """Write states [B, heads, m, head_dim] at `start`; double the buffer if it is too short."""
    stop = start + states.shape[2]
    if buffer.ndim == 1 or buffer.shape[2] < stop:
        larger = states.new_empty(*states.shape[:2], 2 * stop, *states.shape[3:])
        if start:
            larger[:, :, :start] = buffer[:, :, :start]
        buffer = larger
    buffer[:, :, start:stop] = states
    return buffer


def _select(buffer: Tensor, indices: Tensor) -> Tensor:
    """Move rows `indices` to the front, copying only those that change place, and truncate."""
    places = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
    buffer[places] = buffer[indices[places]]
    return buffer[: len(indices)]


def cache_argument(model: nn.Module) -> str:
    """Name of the argument of a model's forward that takes the key-value cache.

    It is `cache` from transformers 5.24 on; before, and in models with remote code, it is
    `past_key_values`.
    """
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
