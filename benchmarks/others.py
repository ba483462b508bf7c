"""Alternatives to our scorers: one row per candidate, and the prompt's key-value cache.

All take the arguments of `recbole_multdpo.scoring.packed.packed_logps` and return its values.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.scoring.cache import cache_argument
from recbole_multdpo.scoring.catalogue import ItemCatalogue
from recbole_multdpo.scoring.lm import causal_lm


def naive_logps(
    lm: nn.Module,
    prompts: Prompts,
    candidates: Tensor,
    catalogue: ItemCatalogue,
    *,
    logits_everywhere: bool,
) -> Tensor:
    """Score one padded row `[prompt | item]` per candidate, as released preference trainers do.

    Args:
        logits_everywhere: compute logits at every position, not only at those that predict a token
            of the item.
    """
    items = catalogue.items
    lengths = items.lengths[candidates].flatten()  # [R], R = B * C rows
    starts = prompts.lengths.repeat_interleave(candidates.shape[1])
    width = prompts.width + int(lengths.max())
    columns = torch.arange(width, device=prompts.device)
    offsets = columns - starts[:, None]  # [R, width], place in the item
    in_item = (offsets >= 0) & (offsets < lengths[:, None])
    prompt_ids = prompts.ids.repeat_interleave(candidates.shape[1], dim=0)
    input_ids = nn.functional.pad(prompt_ids, (0, width - prompts.width))
    tokens = items.ids[candidates.flatten()].gather(1, offsets.clamp(0, items.ids.shape[1] - 1))
    input_ids = torch.where(in_item, tokens, input_ids)
    valid = (columns < (starts + lengths)[:, None]).long()

    row, column = in_item.nonzero(as_tuple=True)
    if logits_everywhere:
        logits = lm(input_ids=input_ids, attention_mask=valid, use_cache=False).logits.float()
        targets = input_ids[:, 1:, None]
        everywhere = logits[:, :-1].gather(2, targets)[..., 0] - logits[:, :-1].logsumexp(2)
        logps = everywhere[row, column - 1]
    else:
        model = causal_lm(lm)
        hidden = model.base_model(
            input_ids=input_ids, attention_mask=valid, use_cache=False
        ).last_hidden_state
        logits = model.get_output_embeddings()(hidden[row, column - 1]).float()
        logps = logits.log_softmax(1).gather(1, input_ids[row, column, None])[:, 0]
    total = logps.new_zeros(len(lengths)).index_add(0, row, logps)
    return total.view(candidates.shape)


def kv_logps(
    lm: nn.Module, prompts: Prompts, candidates: Tensor, catalogue: ItemCatalogue
) -> Tensor:
    """Run the prompt once and repeat its keys and values for candidates, padded to the longest."""
    cache, first = _prompt(lm, prompts)
    return _after_prompt(lm, cache, first, prompts, candidates, catalogue.items)


@torch.no_grad()
def kv_scores(
    lm: nn.Module, prompt: Prompts, items: ItemTokens, *, items_per_chunk: int = 256
) -> Tensor:
    """log π of the whole catalogue after one prompt: [n_items], item 0 is 0.

    The prompt is run once. Items are sorted by length to keep padding small.
    """
    cache, first = _prompt(lm, prompt)
    scores = first.new_zeros(len(items.lengths))
    for chunk in items.lengths.argsort(stable=True)[1:].split(items_per_chunk):
        scores[chunk] = _after_prompt(lm, copy.deepcopy(cache), first, prompt, chunk[None], items)[
            0
        ]
    return scores


def _prompt(lm: nn.Module, prompts: Prompts) -> tuple[DynamicCache, Tensor]:
    """Keys and values of the prompts, and the log-probabilities after them, [B, V]."""
    model = causal_lm(lm)
    cache = DynamicCache(config=model.config)
    hidden = model.base_model(
        input_ids=prompts.ids,
        attention_mask=_valid(prompts.ids, prompts.lengths),
        use_cache=True,
        **{cache_argument(model.base_model): cache},
    ).last_hidden_state
    last = hidden[torch.arange(len(hidden), device=hidden.device), prompts.lengths - 1]
    return cache, model.get_output_embeddings()(last).float().log_softmax(1)


def _valid(ids: Tensor, lengths: Tensor) -> Tensor:
    return (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()


def _after_prompt(
    lm: nn.Module,
    cache: DynamicCache,
    first: Tensor,
    prompts: Prompts,
    candidates: Tensor,
    items: ItemTokens,
) -> Tensor:
    """Log-probabilities [B, C] of candidates from the result of `_prompt`; modifies the cache."""
    model = causal_lm(lm)
    n_candidates = candidates.shape[1]
    lengths = items.lengths[candidates].flatten()  # [R], R = B * C rows
    ids = items.ids[candidates.flatten(), : int(lengths.max())]
    total = first.gather(1, items.ids[candidates, 0])  # [B, C]
    if ids.shape[1] > 1:
        cache.batch_repeat_interleave(n_candidates)
        prompt_mask = _valid(prompts.ids, prompts.lengths).repeat_interleave(n_candidates, 0)
        fed = torch.arange(ids.shape[1] - 1, device=ids.device)
        hidden = model.base_model(
            input_ids=ids[:, :-1],
            attention_mask=torch.cat([prompt_mask, _valid(ids[:, :-1], lengths)], dim=1),
            position_ids=prompts.lengths.repeat_interleave(n_candidates)[:, None] + fed,
            use_cache=True,
            **{cache_argument(model.base_model): cache},
        ).last_hidden_state
        logits = model.get_output_embeddings()(hidden).float()
        logps = logits.log_softmax(2).gather(2, ids[:, 1:, None])[..., 0]
        rest = torch.where(fed + 1 < lengths[:, None], logps, 0.0).sum(1)
        total = total + rest.view(candidates.shape)
    return torch.where(candidates > 0, total, 0.0)
