"""Padded scoring: one row `[prompt | item]` per candidate; the reference implementation.

It only selects logits of the model's own forward pass, so it is correct for every causal model,
including recurrent ones and those that count positions by column.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.scoring.catalogue import ItemCatalogue
from recbole_multdpo.scoring.trie import ROOT, ItemTrie

MAX_LOGITS = 2**28  # logits held at once in ranking, at least one row's: 1 GiB in float32


def padded_logps(
    lm: nn.Module, prompts: Prompts, candidates: Tensor, catalogue: ItemCatalogue
) -> Tensor:
    """log π(item | prompt) of every candidate, one padded row each.

    Same arguments, values and gradients as `recbole_multdpo.scoring.packed.packed_logps`, but
    simpler code: it is the tests' oracle and an option (`--scorer=padded`).

    Returns:
        float [B, C], summed over the item's tokens, nats; 0 at padding.
    """
    logps, slots = padded_token_logps(lm, prompts, candidates, catalogue)
    total = logps.new_zeros(candidates.numel())
    return total.index_add(0, slots, logps).view(candidates.shape)


def padded_token_logps(
    lm: nn.Module, prompts: Prompts, candidates: Tensor, catalogue: ItemCatalogue
) -> tuple[Tensor, Tensor]:
    """The summands of `padded_logps`; the reference for `packed.packed_token_logps`.

    Returns:
        float [R], log-probability of every token of every candidate, nats, a candidate's tokens in
        their order; long [R], flat index [B * C] of the token's candidate.
    """
    rows = _Rows(prompts, candidates, catalogue.items)
    row, column = rows.is_item.nonzero(as_tuple=True)
    logits = rows.logits(lm)[row, column - 1]  # a column is predicted from the one before it
    if catalogue.normalised:
        offset = column - rows.prompt_lengths[row]
        item = candidates.flatten()[row]
        logits = _titles_only(logits, item, offset, catalogue)
    return _chosen(logits, rows.input_ids[row, column]), row


def padded_logps_with_prompt(
    lm: nn.Module, prompts: Prompts, candidates: Tensor, items: ItemTokens
) -> tuple[Tensor, Tensor]:
    """The reference for `packed.packed_logps_with_prompt`.

    Returns:
        float [B, C] as `padded_logps`, and float [B], the sum over all prompt tokens but the first,
        which is not predicted, nats.
    """
    n_examples, n_candidates = candidates.shape
    rows = _Rows(prompts, candidates, items)
    logits = rows.logits(lm)
    row, column = rows.is_item.nonzero(as_tuple=True)
    logps = _chosen(logits[row, column - 1], rows.input_ids[row, column])
    of_items = logps.new_zeros(candidates.numel()).index_add(0, row, logps)
    # all rows of an example have its prompt: use the first row
    first = torch.arange(n_examples, device=candidates.device) * n_candidates
    example, column = rows.is_prompt[first].nonzero(as_tuple=True)
    row = first[example]
    logps = _chosen(logits[row, column - 1], rows.input_ids[row, column])
    of_prompts = logps.new_zeros(n_examples).index_add(0, example, logps)
    return of_items.view(candidates.shape), of_prompts


class _Rows:
    """B * C rows `[prompt | item | padding]` of W columns.

    Attributes:
        input_ids: long [B * C, W].
        prompt_lengths: long [B * C].
        is_item: bool [B * C, W].
        is_prompt: bool [B * C, W], without the first column.
    """

    def __init__(self, prompts: Prompts, candidates: Tensor, items: ItemTokens) -> None:
        n_candidates = candidates.shape[1]
        lengths = items.lengths[candidates].flatten()  # [B * C]
        self.prompt_lengths = prompts.lengths.repeat_interleave(n_candidates)  # [B * C]
        ends = self.prompt_lengths + lengths
        self.input_ids = prompts.ids.new_zeros(len(ends), int(ends.max()))
        for row in range(len(ends)):
            prompt = prompts.ids[row // n_candidates, : self.prompt_lengths[row]]
            item = items.ids[candidates.flatten()[row], : lengths[row]]
            self.input_ids[row, : ends[row]] = torch.cat([prompt, item])
        columns = torch.arange(self.input_ids.shape[1], device=prompts.device)
        self._is_text = columns < ends[:, None]
        self.is_item = self._is_text & (columns >= self.prompt_lengths[:, None])
        self.is_prompt = (columns > 0) & (columns < self.prompt_lengths[:, None])

    def logits(self, lm: nn.Module) -> Tensor:
        """[B * C, W, V] in the model's dtype."""
        attention_mask = self._is_text.long()
        return lm(input_ids=self.input_ids, attention_mask=attention_mask, use_cache=False).logits


def _chosen(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of tokens [R] under logits [R, V]: [R], at least float32."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]


def _titles_only(logits: Tensor, item: Tensor, offset: Tensor, catalogue: ItemCatalogue) -> Tensor:
    """Logits [R, V] with −inf for tokens that do not continue any title of the catalogue."""
    items, trie = catalogue.items, catalogue.trie
    allowed = torch.zeros_like(logits, dtype=torch.bool)
    for row in range(len(logits)):
        node = ROOT
        for token in items.ids[item[row], : offset[row]]:
            children = _children(trie, node)
            node = int(children[trie.token[children] == token])
        allowed[row, trie.token[_children(trie, node)]] = True
    return logits.masked_fill(~allowed, -torch.inf)


def _children(trie: ItemTrie, node: int) -> Tensor:
    return trie.children[trie.child_start[node] :][: trie.child_count[node]]
