"""The key-value cache of ranking, for a prompt and then nodes of the trie."""

from __future__ import annotations

from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from recbole_multdpo.errors import ConfigError

# keys: a buffer shorter than twice this is doubled, a longer one is made half as long again
SPARE = 256


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


def aligned(length: int, device: torch.device) -> int:
    """`length`; on a GPU rounded up to a multiple of 8.

    Attention with a mask of another width would copy the mask in every layer there.
    """
    return -(-length // 8) * 8 if device.type == "cuda" else length


class BufferedLayer(DynamicLayer):
    """One layer's keys and values [B, heads, length, head_dim] in a growing buffer.

    transformers' own dynamic layer concatenates, copying the whole cache at every step: 15 % of the
    search's time with the million-parameter model on a CPU. After the prompts, all keys up to the
    `aligned` length are returned: the mask must hide those beyond `length`.
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
        return self._show() if start else (key_states, value_states)

    def get_seq_length(self) -> int:
        """Positions that hold a key."""
        return self.length

    def keep_rows(self, kept: KeptRows) -> None:
        """Drop all other rows, in place."""
        self.key_buffer = kept.of(self.key_buffer)
        self.value_buffer = kept.of(self.value_buffer)

    def crop(self, max_length: int) -> None:
        """Drop all positions after the first `max_length`."""
        self.length = max_length

    def _show(self) -> tuple[Tensor, Tensor]:
        stop = aligned(self.length, self.key_buffer.device)
        self.keys, self.values = self.key_buffer[:, :, :stop], self.value_buffer[:, :, :stop]
        return self.keys, self.values


def _append(buffer: Tensor, states: Tensor, start: int) -> Tensor:
    """Write states [B, heads, m, head_dim] at `start`; lengthen the buffer if it is too short."""
    stop = start + states.shape[2]
    if buffer.ndim == 1 or buffer.shape[2] < aligned(stop, states.device):
        # `aligned` shows keys that were never written, and 0 times what memory holds may be NaN
        make = states.new_zeros if states.is_cuda else states.new_empty
        length = aligned(stop + min(stop, max(stop // 2, SPARE)), states.device)
        larger = make(*states.shape[:2], length, *states.shape[3:])
        if start:
            larger[:, :, :start] = buffer[:, :, :start]
        buffer = larger
    buffer[:, :, start:stop] = states
    return buffer


class KeptRows:
    """The rows of a batch that stay, in an order in which as few as possible move.

    The last ones fill the gaps among the first ones, so little of a large table is copied.

    Attributes:
        n_rows: how many stay.
        order: int [n_rows], the rows in their new order, on the host.
    """

    def __init__(self, busy: np.ndarray, device: torch.device) -> None:
        """The true rows of `busy`, bool [R] on the host, for tables on `device`."""
        self.n_rows = int(busy.sum())
        gaps = np.flatnonzero(~busy[: self.n_rows])
        fillers = self.n_rows + np.flatnonzero(busy[self.n_rows :])
        self.order = np.arange(self.n_rows)
        self.order[gaps] = fillers
        self._gaps, self._fillers = torch.from_numpy(np.stack([gaps, fillers])).to(device)

    def of(self, table: Tensor) -> Tensor:
        """Move these rows of a table [R, ...] to its front, in place, and leave out the others."""
        table[self._gaps] = table[self._fillers]
        return table[: self.n_rows]


def cache_argument(model: nn.Module) -> str:
    """Name of the argument of a model's forward that takes the key-value cache.

    It is `cache` from transformers 5.24 on; before, and in models with remote code, it is
    `past_key_values`.
    """
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
