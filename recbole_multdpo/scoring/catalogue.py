"""The items with their tokens and trie, and probabilities normalised over them.

A language model spreads its probability over all texts. With `ItemCatalogue.normalised`, items are
ranked by their probability given that the text is a title of the catalogue:

    log π(item | prompt) = Σ_t log [ p(token_t | prefix) / Σ_{c child of the prefix} p(c | prefix) ]

with the children of a prefix in the trie of the catalogue's titles. This is the distribution of
decoding constrained to the catalogue, and it sums to 1 over the catalogue. Forced tokens, without
an alternative title ("ghost tokens" in D3), have probability 1. Without normalisation, preference
training finds a shortcut: the probability of a forced token, above all the terminator, is a free
parameter of the item, which absorbs rewards that do not depend on the user (measured in
docs/experiments.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.scoring.trie import ROOT, ItemTrie, unfold_spans


@dataclass(frozen=True)
class ItemCatalogue:
    """The items that scorers and rankers use, and the normalisation of their probabilities.

    Attributes:
        items: token ids of the items.
        trie: `ItemTrie.build(items)`.
        normalised: True if log-probabilities are normalised over the catalogue, False if over the
            vocabulary, as the model computes them.
    """

    items: ItemTokens
    trie: ItemTrie
    normalised: bool = False

    @classmethod
    def build(cls, items: ItemTokens, *, normalised: bool = False) -> ItemCatalogue:
        """Build the trie; with `normalised`, after `strip_forced_suffixes`.

        Raises:
            DataError: see `ItemTrie.build`.
        """
        trie = ItemTrie.build(items)
        if normalised:
            items = strip_forced_suffixes(items, trie)
            trie = ItemTrie.build(items)
        return cls(items, trie, normalised)

    def __len__(self) -> int:
        return len(self.items.lengths)

    @property
    def normaliser(self) -> ItemTrie | None:
        """The trie whose children probabilities are normalised over; None for the vocabulary."""
        return self.trie if self.normalised else None

    def to(self, device: torch.device | str) -> ItemCatalogue:
        """Copy of the catalogue on `device`."""
        return ItemCatalogue(self.items.to(device), self.trie.to(device), self.normalised)


def strip_forced_suffixes(items: ItemTokens, trie: ItemTrie) -> ItemTokens:
    """Remove the forced tokens at the end of every item.

    They have probability 1, and nothing is predicted from them, so they need not be fed or scored.
    Different items stay different, items with the same text stay equal, and the first token is
    always kept.

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
    """The trie node whose child is token `offset` of `item`; the root for a first token.

    `item` and `offset` are long and broadcast; meaningless beyond an item's length and for item 0.
    """
    depth = trie.path.shape[1]
    if depth == 0:  # every text is one token
        return torch.full_like(offset + item, ROOT)
    parent = trie.parent[trie.leaf_of_item[item]].clamp(min=0)
    above = trie.path[parent, (offset - 1).clamp(0, depth - 1)]
    return torch.where(offset == 0, ROOT, above)


def allowed_tokens(trie: ItemTrie, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """All tokens that continue a title after nodes [n]: index of the node, and token."""
    source, position = unfold_spans(trie.child_start[nodes], trie.child_count[nodes])
    return source, trie.token[trie.children[position]]


def log_softmax_within(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """log softmax of values [n] among those of the same group [n]: [n], with gradient."""
    highest = values.detach().new_full((n_groups,), -torch.inf)
    highest = highest.scatter_reduce(0, group, values.detach(), "amax")
    # a group of zero probability stays at −inf instead of becoming NaN
    shifted = values - highest.clamp(min=torch.finfo(values.dtype).min)[group]
    totals = values.new_zeros(n_groups).index_add(0, group, shifted.exp())
    totals = totals.clamp(min=torch.finfo(values.dtype).tiny)  # 0 for such a group, else >= 1
    return shifted - totals.log()[group]
