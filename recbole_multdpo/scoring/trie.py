"""The trie of the catalogue's item texts, one node per distinct prefix of token ids, as arrays.

An item is the path of its tokens from the root; its last token, the terminator, ends in a leaf.
Because of the terminator no text is a prefix of another one (the code is prefix-free), so only
leaves are items. Items with the same text share a leaf.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
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
    """A trie whose nodes 0 … num_internal − 1 are internal (0 is the root), the others leaves.

    Attributes (all long tensors; N nodes, I internal nodes, D depth of the deepest internal node):
        token: [N], the token that leads to the node; −1 at the root.
        parent: [N], −1 at the root.
        depth: [N], tokens from the root; 0 at the root.
        path: [I, D], the node's ancestors by depth 1, 2, …, the node itself last, padded with the
            root.
        children: [N − 1], grouped by parent, sorted by token.
        child_start, child_count: [I], the node's span in `children`.
        item_order: [n_items − 1], all items except 0 in the lexicographic order of their tokens,
            items of the same text by ascending id; the items below any node are contiguous.
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
        """Number of internal nodes, including the root."""
        return len(self.child_start)

    @property
    def num_leaves(self) -> int:
        """Number of distinct item texts."""
        return len(self.token) - self.num_internal

    @property
    def num_items(self) -> int:
        """Number of rows of the item table, including item 0, RecBole's padding item."""
        return len(self.leaf_of_item)

    @cached_property
    def ending(self) -> Tensor:
        """Number of items whose text ends one token after each internal node, long [I]."""
        leaves = slice(self.num_internal, None)
        counts = torch.zeros_like(self.child_start)
        return counts.index_add_(0, self.parent[leaves], self.item_count[leaves])

    @cached_property
    def counts_of_root(self) -> tuple[int, int]:
        """The root's `child_count` and `ending`."""
        return int(self.child_count[ROOT]), int(self.ending[ROOT])

    @cached_property
    def levels(self) -> list[Tensor]:
        """Nodes of each depth from 1 on, long."""
        return [(self.depth == depth).nonzero()[:, 0] for depth in range(1, self.max_depth + 1)]

    @cached_property
    def max_depth(self) -> int:
        """Tokens of the longest text."""
        return int(self.depth.max())

    def to(self, device: torch.device | str) -> ItemTrie:
        """Copy of the trie on `device`."""
        return ItemTrie(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @classmethod
    def build(cls, item_tokens: ItemTokens) -> ItemTrie:
        """Build the trie by one lexicographic sort, in O(n_items · max_len) memory.

        Raises:
            DataError: the catalogue is empty, an item other than 0 has no tokens, or an item's
                tokens are a prefix of another one's (a terminator is missing).
        """
        ids = item_tokens.ids.cpu().numpy()
        lengths = item_tokens.lengths.cpu().numpy()
        _check_lengths(lengths)
        order, rows, row_lengths, shared = _sorted_rows(ids, lengths)
        _check_prefix_free(order, row_lengths, shared)

        # row r opens a node at every depth beyond the prefix that it shares with the row above
        columns = np.arange(rows.shape[1])
        within = columns < row_lengths[:, None]  # [n, L]
        opens = within & (columns >= shared[:, None])
        row, column = np.nonzero(opens)
        is_leaf = column == row_lengths[row] - 1
        num_nodes, num_internal = len(row) + 1, int(1 + (~is_leaf).sum())
        node = np.empty(len(row), dtype=np.int64)
        node[~is_leaf] = np.arange(1, num_internal)
        node[is_leaf] = np.arange(num_internal, num_nodes)
        node_at = _nodes_of_rows(opens, node)

        token, parent = np.full((2, num_nodes), -1, dtype=np.int64)
        depth, item_start = np.zeros((2, num_nodes), dtype=np.int64)
        token[node] = rows[row, column]
        parent[node] = np.where(column > 0, node_at[row, np.maximum(column - 1, 0)], ROOT)
        depth[node] = column + 1
        item_start[node] = row
        item_count = np.bincount(node_at[within], minlength=num_nodes)
        item_count[ROOT] = len(rows)

        path = np.full((num_internal, int(depth[:num_internal].max())), ROOT, dtype=np.int64)
        for above in range(path.shape[1]):  # a loop over depths, not over nodes
            deep = ~is_leaf & (column >= above)
            path[node[deep], above] = node_at[row[deep], above]

        child_count = np.bincount(parent[1:], minlength=num_internal)
        leaf_of_item = np.full(len(lengths), -1, dtype=np.int64)
        leaf_of_item[order] = node_at[np.arange(len(rows)), row_lengths - 1]
        arrays = {
            "token": token,
            "parent": parent,
            "depth": depth,
            "path": path,
            "children": 1 + np.lexsort((token[1:], parent[1:])),
            "child_start": child_count.cumsum() - child_count,
            "child_count": child_count,
            "item_order": order,
            "item_start": item_start,
            "item_count": item_count,
            "leaf_of_item": leaf_of_item,
        }
        return cls(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def unfold_spans(starts: Tensor, counts: Tensor, total: int | None = None) -> tuple[Tensor, Tensor]:
    """`recbole_multdpo.data.spans.unfold_spans` for tensors: rows and entries, both long.

    `total` is the sum of `counts`; without it a GPU is asked for it.
    """
    source = torch.repeat_interleave(counts, output_size=total)
    first = counts.cumsum(0) - counts
    return source, torch.arange(len(source), device=counts.device) + (starts - first)[source]


def _sorted_rows(
    ids: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Items in lexicographic order: (order [n], tokens [n, L], lengths [n], shared [n]).

    `shared[r]` is the number of leading columns in which row r equals the row above it, L for equal
    texts.
    """
    # −1 sorts before every token, so a prefix is directly above its extensions
    rows = np.where(np.arange(ids.shape[1]) < lengths[1:, None], ids[1:], -1)
    order = np.lexsort(rows.T[::-1])  # stable: equal texts keep ascending ids
    rows, row_lengths = rows[order], lengths[1:][order]
    shared = np.cumprod(rows[1:] == rows[:-1], axis=1).sum(axis=1)
    return order + 1, rows, row_lengths, np.concatenate([[0], shared])


def _nodes_of_rows(opens: np.ndarray, node: np.ndarray) -> np.ndarray:
    """The node of each row's first d + 1 tokens [n, L]; meaningless beyond the row's own length.

    The node was opened in the row itself or in the nearest row above that opens one at this depth.
    `node` numbers the true entries of `opens` [n, L] in row-major order.
    """
    opened_in = np.where(opens, np.arange(len(opens))[:, None], 0)
    opened_in = np.maximum.accumulate(opened_in, axis=0)
    numbered = np.zeros(opens.shape, dtype=np.int64)
    numbered[opens] = node
    return np.take_along_axis(numbered, opened_in, axis=0)


def _check_lengths(lengths: np.ndarray) -> None:
    """Refuse an empty catalogue and items without tokens."""
    if len(lengths) < 2:
        raise DataError("the catalogue has no item besides the padding item 0.")
    empty = np.flatnonzero(lengths[1:] == 0) + 1
    if len(empty):
        raise DataError(
            f"item {empty[0]} has no tokens ({len(empty)} such items); give every item a text that "
            "ends with a terminator token."
        )


def _check_prefix_free(order: np.ndarray, lengths: np.ndarray, shared: np.ndarray) -> None:
    """Refuse a row that extends the row above it; sorted, neighbours suffice."""
    bad = np.flatnonzero((shared[1:] == lengths[:-1]) & (lengths[1:] > lengths[:-1]))
    if len(bad):
        raise DataError(
            f"the tokens of item {order[bad[0] + 1]} begin with all tokens of item "
            f"{order[bad[0]]}: end every item's tokens with one terminator token that occurs "
            "nowhere else."
        )
