"""The forward pass over the prompts in ranking."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.scoring.cache import cache_argument
from recbole_multdpo.scoring.last_layer import hidden_at
from recbole_multdpo.scoring.parts import parts_of
from recbole_multdpo.scoring.windows import LayerKinds


def states_at_ends(model: PreTrainedModel, prompts: Prompts, cache: Cache) -> Tensor:
    """Last hidden states [B, H] at the prompts' last tokens.

    Args:
        model: the causal LM.
        prompts: the B prompts.
        cache: takes the keys and values of all P columns, padding included.
    """
    parts = parts_of(model)
    n_users, width = prompts.ids.shape
    users = torch.arange(n_users, device=prompts.device)
    ends = prompts.lengths - 1
    # attention over the prompt is causal, so no valid position attends to its right padding
    is_plain = model.config._attn_implementation == "sdpa"
    if parts.can_skip and is_plain and not LayerKinds.of(model.config).has_windows:
        columns = torch.arange(width, device=prompts.device).expand(n_users, -1)
        read = (users * width + ends)[:, None]
        return hidden_at(parts.body, prompts.ids, columns, None, read, cache)[:, 0]
    caching: dict[str, Any] = {cache_argument(parts.body): cache, "use_cache": True}
    return parts.body(input_ids=prompts.ids, **caching).last_hidden_state[users, ends]
