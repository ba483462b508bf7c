"""The items with their tokens and trie, and probabilities normalised over them.

A language model spreads its probability over every text. With `ItemCatalogue.normalised`, items
are ranked by the share that each title has of the part that falls on titles:

    log π(item | prompt) = Σ_t log [ p(token_t | prefix) / Σ_{c child of the prefix} p(c | prefix) ]

with the children of a prefix in the trie of the catalogue's titles. This is the distribution that
decoding constrained to the catalogue samples from, and it adds up to 1 over the catalogue. Tokens
that no other title could continue with ("ghost tokens" in D3) have probability 1. Without it
preference training finds a short cut: the probability of such a forced token, the terminator
above all, is a free parameter of the item, in which rewards collect that do not depend on the user
(measured in docs/experiments.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.scoring.trie import ROOT, ItemTrie, spans


@dataclass(frozen=True)
class ItemCatalogue:
    """The items that scorers and rankers know.

    Attributes:
        items: their tokens.
        trie: `ItemTrie.build(items)`.
        normalised: log-probabilities are normalised over the catalogue, otherwise over the
            vocabulary: then they are the model's own.
    """

    items: ItemTokens
    trie: ItemTrie
    normalised: bool = False

    @classmethod
    def build(cls, items: ItemTokens, *, normalised: bool = False) -> ItemCatalogue:
        """Build the trie; where probabilities are normalised, after `strip_forced_suffixes`.

        Raises:
            DataError: as `ItemTrie.build`.
        """
        trie = ItemTrie.build(items)
        if normalised:
            items = strip_forced_suffixes(items, trie)
            trie = ItemTrie.build(items)
        return cls(items, trie, normalised)

    def __len__(self) -> int:
        return len(self.items.lengths)

    def to(self, device: torch.device | str) -> ItemCatalogue:
        """The same catalogue on `device`."""
        return ItemCatalogue(self.items.to(device), self.trie.to(device), self.normalised)


def strip_forced_suffixes(items: ItemTokens, trie: ItemTrie) -> ItemTokens:
    """The items without the tokens after the last one that was a choice.

    Forced tokens at the end have probability 1 and nothing is predicted from them, so they need
    neither be fed nor scored. Items stay apart, items of one text stay alike; the first token
    always stays.

    Args:
        items: token table of the catalogue.
        trie: `ItemTrie.build(items)`.
    """
    offsets = torch.arange(items.ids.shape[1], device=items.ids.device)
    every_item = torch.arange(len(items.ids), device=items.ids.device)
    nodes = prefix_nodes(trie, every_item[:, None], offsets)  # [n_items, L]
    is_choice = (trie.child_count[nodes] > 1) & (offsets < items.lengths[:, None])
    kept = torch.where(is_choice, offsets + 1, 0).amax(1)
    lengths = torch.minimum(kept.clamp(min=1), items.lengths)
    ids = torch.where(offsets < lengths[:, None], items.ids, 0)
    return ItemTokens(ids[:, : int(lengths.max())].contiguous(), lengths)


def prefix_nodes(trie: ItemTrie, item: Tensor, offset: Tensor) -> Tensor:
    """The trie node at which token `offset` of `item` is chosen; the root for a first token.

    Both long and of shapes that broadcast; meaningless beyond an item's length and for item 0.
    """
    depth = trie.path.shape[1]
    if depth == 0:  # every text is one token
        return torch.full_like(offset + item, ROOT)
    parent = trie.parent[trie.leaf_of_item[item]].clamp(min=0)
    above = trie.path[parent, (offset - 1).clamp(0, depth - 1)]
    return torch.where(offset == 0, ROOT, above)


def allowed_tokens(trie: ItemTrie, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """All tokens that continue a title after nodes [n]: which node each is of, and the token."""
    source, position = spans(trie.child_start[nodes], trie.child_count[nodes])
    return source, trie.token[trie.children[position]]


def log_softmax_within(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """log softmax of values [n] among those of the same group [n]: [n], with gradient."""
    highest = values.detach().new_full((n_groups,), -torch.inf)
    highest = highest.scatter_reduce(0, group, values.detach(), "amax")
    # a group without probability stays at −inf instead of turning into NaN
    shifted = values - highest.clamp(min=torch.finfo(values.dtype).min)[group]
    totals = values.new_zeros(n_groups).index_add(0, group, shifted.exp())
    totals = totals.clamp(min=torch.finfo(values.dtype).tiny)  # 0 for such a group, else 1 or more
    return shifted - totals.log()[group]
