"""Padded scoring: one row `[prompt | item]` per candidate, logits everywhere; the slow twin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.scoring.trie import ROOT, ItemTrie


def padded_logps(
    lm: nn.Module,
    prompt_ids: Tensor,
    prompt_lengths: Tensor,
    candidates: Tensor,
    items: ItemTokens,
    trie: ItemTrie | None = None,
) -> Tensor:
    """log pi(item | prompt) of every candidate, one padded row each.

    Same arguments, values and gradients as `recbole_multdpo.scoring.packed.packed_logps`, written
    so that it can be checked by eye: it is the oracle of the tests and an option
    (`--scorer=padded`).

    Returns:
        float [B, C], summed over the item's tokens, nats; 0 at padding.
    """
    n_contexts, n_candidates = candidates.shape
    lengths = items.lengths[candidates].flatten()  # [B * C]
    prompt_lengths = prompt_lengths.repeat_interleave(n_candidates)  # [B * C]
    width = prompt_ids.shape[1] + items.ids.shape[1]
    input_ids = torch.zeros(
        n_contexts * n_candidates, width, dtype=torch.long, device=prompt_ids.device
    )
    for row in range(len(input_ids)):
        prompt = prompt_ids[row // n_candidates, : prompt_lengths[row]]
        item = items.ids[candidates.flatten()[row], : lengths[row]]
        input_ids[row, : len(prompt) + len(item)] = torch.cat([prompt, item])

    columns = torch.arange(width, device=prompt_ids.device)
    attention_mask = (columns < (prompt_lengths + lengths)[:, None]).long()
    logits = lm(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if trie is not None:
        logits = _titles_only(logits, prompt_lengths, candidates.flatten(), items, trie)
    token_logps = logits[:, :-1].log_softmax(-1).gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    # the prediction of column j + 1 stands at column j
    predicted = columns[1:]
    is_item = (predicted >= prompt_lengths[:, None]) & (
        predicted < (prompt_lengths + lengths)[:, None]
    )
    return torch.where(is_item, token_logps, 0.0).sum(-1).view(n_contexts, n_candidates)


def _titles_only(
    logits: Tensor, prompt_lengths: Tensor, candidates: Tensor, items: ItemTokens, trie: ItemTrie
) -> Tensor:
    """Logits [R, W, V] with −inf for every token that continues no title, at item tokens."""
    allowed = torch.ones_like(logits, dtype=torch.bool)
    for row, item in enumerate(candidates.tolist()):
        node = ROOT
        for offset in range(int(items.lengths[item])):
            start, count = trie.child_start[node], trie.child_count[node]
            children = trie.children[start : start + count]
            column = prompt_lengths[row] - 1 + offset
            allowed[row, column] = False
            allowed[row, column, trie.token[children]] = True
            node = int(children[trie.token[children] == items.ids[item, offset]])
    return logits.masked_fill(~allowed, -torch.inf)
