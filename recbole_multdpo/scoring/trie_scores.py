"""log π of every item of the catalogue, feeding each trie node about once.

Nodes are fed in depth-first order, in chunks that do not depend on the user: all users share a
chunk's tokens and mask. A chunk begins with the ancestors of its first node; in depth-first order
these include all ancestors outside the chunk of all its nodes. After a chunk the cache is cropped
to the prompts. `recbole_multdpo.scoring.exhaustive` is the reference implementation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.scoring.attention import grouped_heads
from recbole_multdpo.scoring.cache import (
    BufferedLayer,
    aligned,
    cache_argument,
    check_attention,
)
from recbole_multdpo.scoring.catalogue import ItemCatalogue, log_softmax_within
from recbole_multdpo.scoring.head import Head, head_logps
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.parts import parts_of
from recbole_multdpo.scoring.prompt_pass import states_at_ends
from recbole_multdpo.scoring.trie import ROOT, ItemTrie, unfold_spans
from recbole_multdpo.scoring.windows import LayerKinds

# Tokens of a forward pass that keep a GPU busy, and most nodes of a chunk, over all of which
# attention is computed
TOKENS_CUDA, NODES_CUDA = 2048, 1024
NODES = 128  # of a chunk on a CPU, and at least on a GPU


@torch.no_grad()
def trie_scores(
    lm: nn.Module,
    catalogue: ItemCatalogue,
    prompts: Prompts,
    *,
    nodes_per_chunk: int | None = None,
) -> Tensor:
    """log π(item | prompt) of all items for each of B users; all tensors on the model's device.

    Args:
        lm: a Hugging Face causal LM in eval mode, possibly wrapped by PEFT.
        catalogue: the items and the normalisation.
        prompts: the prompts of the B users.
        nodes_per_chunk: nodes fed per forward and user. Attention is computed over the whole chunk,
            most of it masked, so more than a few hundred are slower. None: chosen for the device
            and the number of users.

    Returns:
        float32 (float64 for a float64 model) [B, n_items], nats, summed over the item's tokens;
        −inf for item 0.

    Raises:
        ValueError: the model is in training mode.
        ConfigError: the model's attention cannot follow the trie's mask.
    """
    model = causal_lm(lm)
    check_attention(model)
    parts, kinds = parts_of(model), LayerKinds.of(model.config)
    trie, prompt_lengths = catalogue.trie, prompts.lengths
    cache = Cache(layer_class_to_replicate=BufferedLayer)
    caching = {cache_argument(parts.body): cache, "use_cache": True}
    hidden = states_at_ends(model, prompts, cache)
    n_users, width = prompts.ids.shape
    masked = torch.finfo(hidden.dtype).min
    columns = torch.arange(width, device=prompts.device)
    prompt_mask = torch.zeros_like(prompts.ids, dtype=hidden.dtype).masked_fill_(
        columns >= prompt_lengths[:, None], masked
    )[:, None, None]  # [B, 1, 1, P]
    high = torch.promote_types(hidden.dtype, torch.float32)
    token_logps = torch.zeros(n_users, len(trie.token), dtype=high, device=hidden.device)

    if nodes_per_chunk is None:
        fitting = max(NODES, min(NODES_CUDA, TOKENS_CUDA // n_users))
        nodes_per_chunk = fitting if hidden.is_cuda else NODES
    root = torch.full_like(prompt_lengths[:1], ROOT)
    of_root = np.array(trie.counts_of_root[:1])
    _score_children(catalogue, parts.head, root, hidden[:, None], token_logps, of_root)
    longest = width + trie.max_depth
    for chunk in _chunks(trie, nodes_per_chunk):
        n_fed = len(chunk.nodes)
        beyond = aligned(width + n_fed, hidden.device) - width - n_fed
        mask = torch.zeros_like(chunk.visible, dtype=hidden.dtype)
        mask.masked_fill_(~chunk.visible, masked)
        mask = F.pad(mask, (0, beyond), value=masked)
        mask = torch.cat(
            [prompt_mask.expand(-1, -1, n_fed, -1), mask.expand(n_users, 1, -1, -1)], dim=3
        )
        positions = prompt_lengths[:, None] + trie.depth[chunk.nodes] - 1  # [B, m]
        keys = torch.cat([columns.expand(n_users, -1), F.pad(positions, (0, beyond))], dim=1)
        with grouped_heads():
            hidden = parts.body(
                input_ids=trie.token[chunk.nodes].expand(n_users, -1),
                position_ids=positions,
                attention_mask=kinds.masks(mask, positions, keys, longest),
                **caching,
            ).last_hidden_state  # [B, m, H]
        cache.crop(width)
        new = slice(chunk.n_ancestors, None)
        nodes = chunk.nodes[new]
        _score_children(catalogue, parts.head, nodes, hidden[:, new], token_logps, chunk.counts)
    leaves = trie.leaf_of_item.clamp(min=0)  # item 0 has none
    above = trie.path[trie.parent[leaves]]  # [n_items, D], padded with the root, whose value is 0
    scores = token_logps[:, leaves]
    for depth in range(above.shape[1]):
        scores += token_logps[:, above[:, depth]]
    scores[:, 0] = -torch.inf
    return scores


@dataclass(frozen=True)
class _Chunk:
    """Nodes that are fed together.

    Attributes:
        nodes: long [m], the ancestors of the first new node, then the new nodes, depth first.
        n_ancestors: number of these ancestors, which earlier chunks have fed too.
        visible: bool [m, m], True if a node (row) attends to another one: an ancestor or itself.
        counts: int [m − n_ancestors], children of the new nodes, on the host.
    """

    nodes: Tensor
    n_ancestors: int
    visible: Tensor
    counts: np.ndarray


def _chunks(trie: ItemTrie, nodes_per_chunk: int) -> Iterator[_Chunk]:
    """Yield all internal nodes but the root, depth first, with `nodes_per_chunk` new ones each."""
    # ancestors start at the same item or earlier and are less deep
    start = trie.item_start[1 : trie.num_internal]
    depth = trie.depth[1 : trie.num_internal]
    order = 1 + (start * (trie.max_depth + 1) + depth).argsort()
    if len(order) == 0:  # every text is one token: the root is the only internal node
        return
    # a node's index in the current chunk; the root, which pads `path`, gets the one after the last
    place = torch.zeros(trie.num_internal, dtype=torch.long, device=order.device)
    above = (trie.depth[order[::nodes_per_chunk]] - 1).tolist()
    counts = trie.child_count[order].cpu().numpy()
    for number, new in enumerate(order.split(nodes_per_chunk)):
        n_ancestors = above[number]
        nodes = torch.cat([trie.path[new[0], :n_ancestors], new])
        n_fed = len(nodes)
        place[nodes] = torch.arange(n_fed, device=nodes.device)
        place[ROOT] = n_fed
        visible = torch.zeros(n_fed, n_fed + 1, dtype=torch.bool, device=nodes.device)
        visible.scatter_(1, place[trie.path[nodes]], True)
        of_new = counts[number * nodes_per_chunk :][: len(new)]
        yield _Chunk(nodes, n_ancestors, visible[:, :n_fed], of_new)


def _score_children(
    catalogue: ItemCatalogue,
    head: Head,
    nodes: Tensor,
    hidden: Tensor,
    token_logps: Tensor,
    counts: np.ndarray,
) -> None:
    """Fill in log π(token | prefix) of all children of some nodes.

    Args:
        catalogue: the items and the normalisation.
        head: the LM head.
        nodes: long [m], internal nodes.
        hidden: [B, m, H], last hidden states at the nodes.
        token_logps: [B, n_nodes], changed in place.
        counts: int [m], children of each node, on the host.
    """
    trie = catalogue.trie
    n_users, n_nodes = hidden.shape[:2]
    total = int(counts.sum())
    source, position = unfold_spans(trie.child_start[nodes], trie.child_count[nodes], total)
    children = trie.children[position]  # [n]
    first_row = n_nodes * torch.arange(n_users, device=nodes.device)
    groups = (first_row[:, None] + source).flatten()
    tokens = trie.token[children].repeat(n_users)
    of_rows = np.tile(counts, n_users)
    logps = head_logps(hidden.flatten(0, 1), head, groups, tokens, counts=of_rows)
    if catalogue.normalised:
        logps = log_softmax_within(logps, groups, n_users * n_nodes)
    token_logps[:, children] = logps.view(n_users, -1)
