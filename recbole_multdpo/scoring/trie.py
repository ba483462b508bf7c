"""The trie of the catalogue's item texts: every prefix of token ids once, as flat arrays.

An item is the path of its tokens from the root; its last token, the terminator, ends in a leaf. Because
of the terminator no text is a prefix of another one (the code is prefix-free), so items live in leaves
only. Two items with the same text share a leaf.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from recbole_multdpo.errors import DataError

if TYPE_CHECKING:
    from recbole_multdpo.data.item_tokens import ItemTokens

ROOT = 0


@dataclass(frozen=True)
class ItemTrie:
    """Nodes 0 … num_internal − 1 are internal (0 is the root), the following ones are leaves.

    Attributes (all long tensors; N nodes, I internal nodes, D depth of the deepest internal node):
        token: [N], the token that leads to the node; −1 at the root.
        parent: [N], −1 at the root.
        depth: [N], tokens from the root; 0 at the root.
        path: [I, D], the node's ancestors by depth 1, 2, …, the node itself last, padded with the root.
        children: [N − 1], grouped by parent, sorted by token.
        child_start, child_count: [I], the node's span in `children`.
        item_order: [n_items − 1], all items except 0 in the lexicographic order of their tokens, items of
            the same text by ascending id. The items below any node are contiguous here.
        item_start, item_count: [N], the node's span in `item_order`.
        leaf_of_item: [n_items], −1 for item 0.
    """

    token: Tensor
    parent: Tensor
    depth: Tensor
    path: Tensor
    children: Tensor
    child_start: Tensor
    child_count: Tensor
    item_order: Tensor
    item_start: Tensor
    item_count: Tensor
    leaf_of_item: Tensor

    @property
    def num_internal(self) -> int:
        """Internal nodes, the root included: the forward positions of an exhaustive search plus one."""
        return len(self.child_start)

    @property
    def num_leaves(self) -> int:
        """Distinct item texts."""
        return len(self.token) - self.num_internal

    @property
    def num_items(self) -> int:
        """Rows of the item table, item 0 (RecBole's padding item) included."""
        return len(self.leaf_of_item)

    def to(self, device: torch.device | str) -> ItemTrie:
        """The same trie on `device`."""
        return ItemTrie(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @classmethod
    def build(cls, item_tokens: ItemTokens) -> ItemTrie:
        """Build the trie by one lexicographic sort; O(n_items · max_len) memory, no loop over nodes.

        Raises:
            DataError: the catalogue is empty, an item other than 0 has no tokens, or the tokens of an item
                begin with all the tokens of another one (a terminator is missing).
        """
        ids = item_tokens.ids.cpu().numpy()
        lengths = item_tokens.lengths.cpu().numpy()
        _check_lengths(lengths)
        order, rows, row_lengths, shared = _sorted_rows(ids, lengths)
        _check_prefix_free(order, row_lengths, shared)

        # row r opens a node at every depth beyond what it shares with the row above it
        columns = np.arange(rows.shape[1])
        opens = (columns >= shared[:, None]) & (columns < row_lengths[:, None])  # [n, L]
        row, column = np.nonzero(opens)
        is_leaf = column == row_lengths[row] - 1
        num_internal = int(1 + (~is_leaf).sum())
        node = np.empty(len(row), dtype=np.int64)
        node[~is_leaf] = np.arange(1, num_internal)
        node[is_leaf] = np.arange(num_internal, len(row) + 1)

        # node_at[r, d]: the node of row r's first d + 1 tokens, opened in row r or the nearest row above;
        # deeper than the row's own length it is meaningless
        opened_in = np.where(opens, np.arange(len(rows))[:, None], 0)
        opened_in = np.maximum.accumulate(opened_in, axis=0)
        node_at = np.zeros(opens.shape, dtype=np.int64)
        node_at[row, column] = node
        node_at = np.take_along_axis(node_at, opened_in, axis=0)

        num_nodes = len(row) + 1
        token, parent = np.full((2, num_nodes), -1, dtype=np.int64)
        depth, item_start, item_count = np.zeros((3, num_nodes), dtype=np.int64)
        token[node] = rows[row, column]
        parent[node] = np.where(column > 0, node_at[row, np.maximum(column - 1, 0)], ROOT)
        depth[node] = column + 1
        item_start[node] = row
        within = columns < row_lengths[:, None]
        item_count[:] = np.bincount(node_at[within], minlength=num_nodes)
        item_count[ROOT] = len(rows)

        path = np.full((num_internal, int(depth[:num_internal].max())), ROOT, dtype=np.int64)
        for above in range(path.shape[1]):  # a loop over depths, not over nodes
            deep = ~is_leaf & (column >= above)
            path[node[deep], above] = node_at[row[deep], above]

        children = 1 + np.lexsort((token[1:], parent[1:]))
        child_count = np.bincount(parent[1:], minlength=num_internal)
        leaf_of_item = np.full(len(lengths), -1, dtype=np.int64)
        leaf_of_item[order] = node_at[np.arange(len(rows)), row_lengths - 1]
        arrays = {
            "token": token,
            "parent": parent,
            "depth": depth,
            "path": path,
            "children": children,
            "child_start": child_count.cumsum() - child_count,
            "child_count": child_count,
            "item_order": order,
            "item_start": item_start,
            "item_count": item_count,
            "leaf_of_item": leaf_of_item,
        }
        return cls(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _sorted_rows(
    ids: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Items in lexicographic order: (order [n], tokens [n, L], lengths [n], shared [n]).

    `shared[r]` is the number of leading tokens that row r has in common with the row above it.
    """
    # −1 sorts before every token, so that a prefix stands directly above its extensions
    rows = np.where(np.arange(ids.shape[1]) < lengths[1:, None], ids[1:], -1)
    order = np.lexsort(rows.T[::-1])  # stable: equal texts keep ascending ids
    rows, row_lengths = rows[order], lengths[1:][order]
    equal = np.cumprod(rows[1:] == rows[:-1], axis=1).sum(axis=1)
    shared = np.minimum(equal, np.minimum(row_lengths[1:], row_lengths[:-1]))
    return order + 1, rows, row_lengths, np.concatenate([[0], shared])


def _check_lengths(lengths: np.ndarray) -> None:
    """Refuse an empty catalogue and items without tokens."""
    if len(lengths) < 2:
        raise DataError("the catalogue holds no item besides the padding item 0.")
    empty = np.flatnonzero(lengths[1:] == 0) + 1
    if len(empty):
        raise DataError(
            f"item {empty[0]} has no tokens ({len(empty)} such items); give every item a text, closed by a "
            "terminator token."
        )


def _check_prefix_free(order: np.ndarray, lengths: np.ndarray, shared: np.ndarray) -> None:
    """Refuse a row that continues the row above it: sorted, it suffices to look at neighbours."""
    bad = np.flatnonzero((shared[1:] == lengths[:-1]) & (lengths[1:] > lengths[:-1]))
    if len(bad):
        raise DataError(
            f"the tokens of item {order[bad[0] + 1]} begin with all tokens of item {order[bad[0]]}: close "
            "every item's tokens with one terminator token that occurs nowhere else."
        )
