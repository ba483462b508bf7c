"""Beam search in the trie of item texts, the decoding of D3, with ranks for the dropped items.

A beam has the `beam_size` best prefixes. Each step feeds them through the model and scores their
children. Texts that end among the best `beam_size` children are complete; the best open children
are the next beam. Scores are sums, not divided by length. This is the search of transformers'
`generate` with `length_penalty=0`, constrained to the trie.

A prefix may have a bias in addition to its log-probability (the scores of a collaborative model for
the items below it). Here the bias is part of the score; in `best_first` it is only a bound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.errors import TrainingError
from recbole_multdpo.scoring.best_first import TrieSearch
from recbole_multdpo.scoring.catalogue import ItemCatalogue
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.topk import NAN_SCORES, TopK, stable_topk
from recbole_multdpo.scoring.trie import ItemTrie


@torch.no_grad()
def beam_topk(
    lm: nn.Module,
    catalogue: ItemCatalogue,
    prompts: Prompts,
    excluded: Tensor | None,
    k: int,
    *,
    beam_size: int,
    node_bias: Tensor | None = None,
) -> TopK:
    """Rank k items for each of B users: first the items that the beam completes, then all others.

    The best `beam_size` completed texts come first, by score. The others follow by the score of
    their longest scored prefix, an upper bound of their own score; their values in `TopK.scores`
    are shifted below the completed ones and only give an order.

    Args:
        lm: a Hugging Face causal LM in eval mode, possibly wrapped by PEFT.
        catalogue: the items and the normalisation; normalised over the catalogue, a forced token
            has log-probability 0.
        prompts: the prompts of the B users.
        excluded: bool [B, n_items], items that must not be ranked, or None. A beam skips prefixes
            with only excluded items below them.
        k: items per user.
        beam_size: prefixes per step, at least 1.
        node_bias: [B, n_nodes], nats, added to the log-probability of a node's prefix; not larger
            at a node than at its parent. None for no bias.

    Returns:
        `TopK`; equal scores by ascending item id.

    Raises:
        ValueError: the model is in training mode.
        TrainingError: a log-probability is NaN.
        ConfigError: the model's attention cannot follow the trie's mask.
    """
    search = _BeamSearch(lm, catalogue, prompts, excluded, beam_size, node_bias)
    while search.step_beam():
        pass
    if search.found_nan:
        raise TrainingError(NAN_SCORES)
    items, scores = stable_topk(search.ranking_scores(), k)
    return TopK(items, scores, search.expanded)


class _BeamSearch(TrieSearch):
    """State of B users' beams; N nodes, I of them internal, R unfinished rows.

    In addition to `TrieSearch`, whose frontier it does not use: `node_logps` [B, N]
    (log-probability of every scored prefix, otherwise −inf), `node_bias` [B, N] (−inf if no allowed
    item is below the node), `is_complete` [B, N] (leaves that were among the best of their step),
    and `scored`, the rows and nodes of the last step.
    """

    def __init__(
        self,
        lm: nn.Module,
        catalogue: ItemCatalogue,
        prompts: Prompts,
        excluded: Tensor | None,
        beam_size: int,
        node_bias: Tensor | None,
    ) -> None:
        trie = catalogue.trie
        shape = (len(prompts), len(trie.token))
        self.beam_size = beam_size
        self.node_logps = torch.full(
            shape,
            -math.inf,
            dtype=torch.promote_types(causal_lm(lm).dtype, torch.float32),
            device=prompts.device,
        )
        super().__init__(lm, catalogue, prompts, excluded, beam_size)
        allowed = torch.zeros(shape, dtype=torch.bool, device=prompts.device)
        allowed[:, : trie.num_internal] = self.alive
        users, items = self.allowed[:, 1:].nonzero(as_tuple=True)
        allowed[users, trie.leaf_of_item[items + 1]] = True
        given = torch.zeros_like(self.node_logps) if node_bias is None else node_bias
        self.node_bias = given.to(self.node_logps).masked_fill(~allowed, -math.inf)
        self.is_complete = torch.zeros_like(allowed)

    def _file(self, rows: Tensor, children: Tensor, child_scores: Tensor, n_items: int) -> None:
        self.node_logps[self.users[rows], children] = child_scores
        self.scored = rows, children

    def step_beam(self) -> bool:
        """Complete texts and feed the next beam of each unfinished user; False if none is left."""
        rows, children = self.scored
        users = self.users[rows]
        n_internal = self.trie.num_internal
        scores = self.node_logps.new_full((len(self.users), len(self.trie.token)), -math.inf)
        scores[rows, children] = self.node_logps[users, children] + self.node_bias[users, children]
        best, nodes = scores.topk(min(self.beam_size, scores.shape[1]), dim=1)
        completed = (best > -math.inf) & (nodes >= n_internal)
        self.is_complete[self.users[:, None], nodes] |= completed

        best, nodes = scores[:, :n_internal].topk(min(self.beam_size, n_internal), dim=1)
        # a prefix below the last of `beam_size` complete texts can never replace one
        live = (best > -math.inf) & (best > self._last_complete()[self.users, None])
        scores = self.node_logps[self.users[:, None], nodes]
        return self._feed(scores, nodes, self._counts(nodes, live))

    def _last_complete(self) -> Tensor:
        """Score of each user's `beam_size`-th complete text, −inf if there are fewer: [B]."""
        scores = self._complete_scores()
        if self.beam_size > scores.shape[1]:
            return scores.new_full((len(scores),), -math.inf)
        return scores.topk(self.beam_size, dim=1).values[:, -1]

    def _complete_scores(self) -> Tensor:
        """Scores of complete texts, −inf elsewhere: [B, leaves]."""
        first = self.trie.num_internal
        scores = self.node_logps[:, first:] + self.node_bias[:, first:]
        return scores.masked_fill(~self.is_complete[:, first:], -math.inf)

    def ranking_scores(self) -> Tensor:
        """Scores for ranking the items [B, n_items], −inf for excluded items and padding."""
        trie = self.trie
        totals = self.node_logps + self.node_bias  # [B, N]
        leaves = trie.leaf_of_item.clamp(min=0)  # item 0 has none
        above = trie.path[trie.parent[leaves]]  # [n_items, D], padded with the root, never scored
        bounds = totals.new_full((len(totals), trie.num_items), -math.inf)
        for node in [*above.unbind(1), leaves]:  # from the first token to the whole text
            scored = self.node_logps[:, node] > -math.inf
            bounds = torch.where(scored, totals[:, node], bounds)
        complete = self._complete_scores()
        last = self._last_complete()[:, None]
        complete = complete.masked_fill(complete < last, -math.inf)  # [B, leaves]
        first = complete[:, (leaves - trie.num_internal).clamp(min=0)]  # [B, n_items]
        is_first = (first > -math.inf) & self.allowed
        bounds = bounds.masked_fill(~self.allowed, -math.inf)
        bounds[:, 0] = -math.inf
        others = bounds.masked_fill(is_first, -math.inf)
        lowest = first.masked_fill(~is_first, math.inf).amin(1, keepdim=True)
        shift = (others.amax(1, keepdim=True) - lowest + 1).clamp(min=0)
        scores = torch.where(is_first, first, others - shift)
        scores[:, 0] = -math.inf
        return scores


def node_log_probs(trie: ItemTrie, item_log_probs: Tensor) -> Tensor:
    """Log of the summed probabilities of the items below every node.

    Args:
        trie: the catalogue's texts.
        item_log_probs: [B, n_items], log of probabilities that sum to 1; entry 0 is ignored.

    Returns:
        float64 [B, N], nats; 0 at the root. Summed from the leaves up, which keeps the precision of
        small probabilities.
    """
    probs = item_log_probs.double().exp()
    n_users = len(probs)
    masses = probs.new_zeros(n_users, len(trie.token))
    items = trie.item_order
    masses.scatter_add_(1, trie.leaf_of_item[items].expand(n_users, -1), probs[:, items])
    for nodes in reversed(trie.levels):
        masses.scatter_add_(1, trie.parent[nodes].expand(n_users, -1), masses[:, nodes])
    # underflow becomes the smallest positive number: an item at −inf could not be ranked
    return masses.clamp(min=torch.finfo(masses.dtype).tiny).log()
