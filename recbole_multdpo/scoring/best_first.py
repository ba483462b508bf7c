"""Exact top-K over the whole catalogue by best-first search in the trie of item texts.

The score of an item is log π(item | prompt), summed over the tokens of its text. Every further
token adds a number <= 0, so the score of a prefix bounds all items below it: once K items are
complete, a prefix below the K-th of them can be pruned. Each step feeds the best open prefixes of
every user through the model, all users in lockstep, until no open prefix can beat a K-th item. If
items have a bias (a collaborative score) in addition to their log-probability, the bound of a
prefix is its log-probability plus the largest bias below it.

The prompt and every fed node stay in one growing key-value cache per user. A node attends to its
prompt, its ancestors and itself; children of the root are scored from the prompt's last position.
`recbole_multdpo.scoring.exhaustive` is the reference implementation.

With flat scores, as of an untrained model, most of the trie stays open, and the cache grows.
In a large trie the search of such a user is given up, and `recbole_multdpo.scoring.trie_scores`
scores every item.

On a GPU a step waits for the device once, to learn how many children the chosen nodes have; all
sizes, and which users are finished, follow from that on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.errors import TrainingError
from recbole_multdpo.scoring.attention import grouped_heads
from recbole_multdpo.scoring.cache import (
    BufferedLayer,
    KeptRows,
    aligned,
    cache_argument,
    check_attention,
)
from recbole_multdpo.scoring.catalogue import ItemCatalogue, log_softmax_within
from recbole_multdpo.scoring.head import head_logps
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.parts import parts_of
from recbole_multdpo.scoring.prompt_pass import states_at_ends
from recbole_multdpo.scoring.topk import NAN_SCORES, TopK, stable_topk
from recbole_multdpo.scoring.trie import ROOT, ItemTrie, unfold_spans
from recbole_multdpo.scoring.trie_scores import trie_scores
from recbole_multdpo.scoring.windows import LayerKinds

# Giving up once the search has cost about as much as scoring the whole trie costs at most twice the
# better choice. A fed node costs more with a longer cache, so the limit is a quarter of the nodes,
# but at least this many (docs/performance.md).
PATIENCE = 4096
# nats below the K-th item at which a prefix is still expanded, so that rounding prunes no item; a
# larger value costs nodes, never exactness
SLACK = 1e-4


class TrieSearch:
    """Search for the k items of highest log π(item | prompt) for each of B users.

        search = TrieSearch(lm, catalogue, prompts, excluded, k)
        found = search.run(expand_per_step=16)

    With several weights of a bias, a user whose search is finished goes on with the next weight,
    from the nodes that are fed already: these bound and score items under any weight.

    Rows are padded to the longest prompt and to the user with the most nodes of a step, so batch
    users of similar prompt length. All tensors are on the model's device.

    The state, with I internal nodes and R unfinished rows. Tables over all B users: `allowed`
    [B, n_items], `alive` [B, I] (some allowed item is below the node), `item_scores` [B, n_items]
    (−inf until the item is complete), `expanded` [B], `given_up` [B]; `targets` [B, T] and
    `leads_to_target` [B, I] (a target is below the node), or None without targets; `turn` [B], the
    number of the user's present weight.
    Tables over the R rows still in the batch: `users` [R], `prompt_lengths` [R],
    `prompt_mask` [R, P], `frontier` [R, I] (log-probability of an open prefix, otherwise −inf),
    `largest_bias` [R, I] (of the allowed items below a node; None without a bias), `slots`
    [R, I] (a fed node's index in the cache), `cached_positions` [R, K] (of the K tokens in the
    cache; only updated if some layers have a window), and the cache.
    """

    @torch.no_grad()
    def __init__(
        self,
        lm: nn.Module,
        catalogue: ItemCatalogue,
        prompts: Prompts,
        excluded: Tensor | None,
        k: int,
        *,
        item_bias: Tensor | None = None,
        weights: Sequence[float] = (1.0,),
        max_expanded: int | None = None,
    ) -> None:
        """Feed the prompts and score the first tokens of all items.

        Args:
            lm: a Hugging Face causal LM in eval mode, possibly wrapped by PEFT.
            catalogue: the items and the normalisation.
            prompts: the prompts of the B users.
            excluded: bool [B, n_items], items that must not be ranked (a user's history), or None.
            k: items per user.
            item_bias: [B, n_items], nats of any sign, added to the log-probabilities: items are
                ranked and scored by the sum. None for no bias.
            weights: factors of the bias, not negative; `run_all` has a result for each.
            max_expanded: number of expanded nodes after which a user's search is given up in favour
                of scoring all items along the trie. None: a quarter of the internal nodes, at least
                `PATIENCE`.

        Raises:
            ValueError: the model is in training mode, or k < 1.
            ConfigError: the model's attention cannot follow the trie's mask.
        """
        if k < 1:
            raise ValueError(f"k={k} must be at least 1.")
        self.model = causal_lm(lm)
        check_attention(self.model)
        parts = parts_of(self.model)
        self.body, self.head = parts.body, parts.head
        self.layer_kinds = LayerKinds.of(self.model.config)
        self.catalogue, self.prompts = catalogue, prompts
        self.trie = trie = catalogue.trie
        self.k = k
        patience = max(PATIENCE, trie.num_internal // 4)
        self.max_expanded = patience if max_expanded is None else max_expanded
        self.cache = Cache(layer_class_to_replicate=BufferedLayer)
        self.caching = {cache_argument(self.body): self.cache, "use_cache": True}
        hidden = states_at_ends(self.model, prompts, self.cache)
        self.masked = torch.finfo(hidden.dtype).min
        dtype = torch.promote_types(hidden.dtype, torch.float32)

        n_users, device = len(prompts), prompts.device
        shape = (n_users, trie.num_items)
        self.allowed = torch.ones(shape, dtype=torch.bool, device=device)
        if excluded is not None:
            self.allowed = ~excluded
        self.alive = _any_below(trie, self.allowed)
        self.item_scores = torch.full(shape, -math.inf, dtype=dtype, device=device)
        self.expanded = torch.zeros(n_users, dtype=torch.long, device=device)
        self.given_up = torch.zeros(n_users, dtype=torch.bool, device=device)
        self.found_nan = torch.zeros((), dtype=torch.bool, device=device)
        self.targets: Tensor | None = None
        self.item_bias = self.largest_bias = None
        self.weights = weights
        self.turn = torch.zeros_like(self.expanded)
        self.found: list[TopK] = []
        if item_bias is not None:
            # of users at weight 1; the tables of the search are at the present weight
            self.whole_bias = item_bias.masked_fill(~self.allowed, 0.0)
            self.whole_bias[:, 0] = 0.0  # item 0 is never scored; it may have −inf
            largest = _largest_below(trie, item_bias.masked_fill(~self.allowed, -math.inf))
            self.whole_largest = largest.masked_fill(~self.alive, 0.0)
            self.item_bias = weights[0] * self.whole_bias
            self.largest_bias = weights[0] * self.whole_largest
        if len(weights) > 1:
            self.item_logps = self.item_scores.clone()
            empty = stable_topk(self.item_scores, k)
            self.found = [TopK(*(t.clone() for t in (*empty, self.expanded))) for _ in weights]

        self.users = torch.arange(n_users, device=device)
        self.prompt_lengths = prompts.lengths.clone()
        columns = torch.arange(prompts.width, device=device)
        self.prompt_mask = torch.zeros_like(prompts.ids, dtype=hidden.dtype).masked_fill_(
            columns >= prompts.lengths[:, None], self.masked
        )
        self.cached_positions = columns.repeat(n_users, 1)
        shape = (n_users, trie.num_internal)
        self.frontier = torch.full(shape, -math.inf, dtype=dtype, device=device)
        # paths are padded with the root, whose slot is the prompt's last token: attended anyway
        self.slots = torch.zeros(shape, dtype=torch.long, device=device)
        self.slots[:, ROOT] = prompts.lengths - 1
        self._score_children(
            self.users,
            torch.full_like(self.users, ROOT),
            self.item_scores.new_zeros(n_users),
            hidden,
            np.tile(np.array(trie.counts_of_root)[:, None], n_users),
        )

    def set_targets(self, targets: Tensor) -> None:
        """Limit the search to the ranks of some items, the targets.

        A user's search ends once all targets' ranks are certain: targets among the first k have
        their exact ranks, and no other target is listed, but the lists may be incomplete after the
        last target.

        Args:
            targets: long [B, T], 0 is padding.
        """
        self.targets = targets
        parents = self.trie.parent[self.trie.leaf_of_item[targets]]
        parents = parents.masked_fill(targets == 0, ROOT)
        self.leads_to_target = torch.zeros_like(self.frontier, dtype=torch.bool)
        self.leads_to_target.scatter_(1, self.trie.path[parents].flatten(1), True)

    @torch.no_grad()
    def run(self, *, expand_per_step: int = 32) -> TopK:
        """Search until no open prefix can change the result; of several weights, the last one's.

        Args:
            expand_per_step: nodes fed per user and step, at most. More nodes need fewer forward
                passes, but expand more nodes that a later bound would have pruned.

        Returns:
            `TopK`. Scores are computed in float32, in float64 for a float64 model. Equal scores are
            in ascending order of item id; excluded items and items of probability 0 are never
            ranked.

        Raises:
            ValueError: `expand_per_step` < 1.
            TrainingError: a log-probability is NaN.
        """
        return self.run_all(expand_per_step=expand_per_step)[-1]

    @torch.no_grad()
    def run_all(self, *, expand_per_step: int = 32) -> list[TopK]:
        """`run` for each weight of the bias, in their order; `expanded` counts from the first."""
        if expand_per_step < 1:
            raise ValueError(f"expand_per_step={expand_per_step} must be at least 1.")
        while self.step(expand_per_step):
            pass
        rows = self.given_up.nonzero()[:, 0]
        if len(rows):
            scores = trie_scores(self.model, self.catalogue, self.prompts.select(rows).trimmed())
            scores = scores.masked_fill(~self.allowed[rows], -math.inf)
            if self.item_bias is not None:
                if self.found:
                    self.item_logps[rows] = scores
                scores = scores + self.item_bias[rows]
            self.item_scores[rows] = scores
            self.expanded[rows] += self.trie.num_internal - 1
        if self.found_nan:
            raise TrainingError(NAN_SCORES)
        if self.found:
            while len(unfinished := (self.turn < len(self.weights) - 1).nonzero()[:, 0]):
                self._next_weight(unfinished)  # of users whose every item is scored
        items, scores = stable_topk(self.item_scores, self.k)
        return [*self.found[:-1], TopK(items, scores, self.expanded)]

    def _needed(self, bounds: Tensor) -> Tensor:
        """Score that an open node's bound must reach to be expanded: bounds [R, I] to [R, 1].

        It is the score of the K-th item. With targets, once no open node can lead a target above
        the K-th item, it is the lowest target that is not below it: when no open node reaches that
        one either, all ranks of targets are certain. Without such a target it is +inf.
        """
        item_scores = self.item_scores[self.users]
        last = item_scores.topk(min(self.k, self.trie.num_items), dim=1).values[:, -1:]
        if self.targets is None:
            return last
        towards = bounds.masked_fill(~self.leads_to_target[self.users], -math.inf)
        towards = towards.amax(1, keepdim=True)
        is_open = (towards >= last - SLACK) & (towards > -math.inf)
        found = item_scores.gather(1, self.targets[self.users])  # [R, T]; -inf for padding
        in_reach = (found >= last) & (found > -math.inf)
        lowest = found.masked_fill(~in_reach, math.inf).amin(1, keepdim=True)
        return torch.where(is_open, last, lowest)

    def step(self, expand_per_step: int) -> bool:
        """Feed the best open nodes of every unfinished user; False once all users are finished."""
        # the sum bounds every item below the node even after rounding, which is monotonic
        bounds = self.frontier
        if self.largest_bias is not None:
            bounds = bounds + self.largest_bias  # [R, I]
        needed = self._needed(bounds)
        bounds, nodes = bounds.topk(min(expand_per_step, self.trie.num_internal), dim=1)
        scores = self.frontier.gather(1, nodes)
        # not strictly greater: an item of equal score and lower id would win
        live = (bounds >= needed - SLACK) & (bounds > -math.inf)  # [R, m], true ones first
        spent = live[:, 0] & (self.expanded[self.users] > self.max_expanded)
        self.given_up[self.users] = spent
        counts = self._counts(nodes, live & ~spent[:, None])
        if self.found and not counts[0, :, 0].all():
            finished = ~live[:, 0] & (self.turn[self.users] < len(self.weights) - 1)
            if finished.any():
                assert self.largest_bias is not None
                users = self.users[finished]
                self._next_weight(users)
                self.largest_bias[finished] = self._weighted(self.whole_largest, users)
                return True
        return self._feed(scores, nodes, counts)

    def _next_weight(self, users: Tensor) -> None:
        """Keep the lists of users, long [n], and score their items with their next weights."""
        assert self.item_bias is not None
        items, scores = stable_topk(self.item_scores[users], self.k)
        for number, found in enumerate(self.found):
            now = self.turn[users] == number
            found.items[users[now]], found.scores[users[now]] = items[now], scores[now]
            found.expanded[users[now]] = self.expanded[users[now]]
        self.turn[users] += 1
        self.item_bias[users] = self._weighted(self.whole_bias, users)
        self.item_scores[users] = self.item_logps[users] + self.item_bias[users]

    def _weighted(self, table: Tensor, users: Tensor) -> Tensor:
        """Rows of users, long [n], of a table of the bias, times their present weights."""
        return table[users] * table.new_tensor(self.weights)[self.turn[users], None]

    def _counts(self, nodes: Tensor, live: Tensor) -> np.ndarray:
        """Children of nodes [R, m], and items that end at these; 0 for nodes that are not live.

        Returns:
            int [2, R, m], on the host, which waits for the device here and nowhere else in a step.
        """
        counts = torch.stack([self.trie.child_count[nodes], self.trie.ending[nodes]])
        return counts.masked_fill_(~live, 0).cpu().numpy()

    def _feed(self, scores: Tensor, nodes: Tensor, counts: np.ndarray) -> bool:
        """Run the live ones of nodes [R, m] through the model; False if there are none.

        Users without a live node leave the batch. The live nodes of a user precede the others.

        Args:
            scores: [R, m], log-probability of each node's prefix.
            nodes: long [R, m], internal nodes.
            counts: `_counts` of them.
        """
        is_live = counts[0] > 0
        busy = is_live.any(1)
        if not busy.any():
            return False
        if not busy.all():
            kept = KeptRows(busy, nodes.device)
            self._keep(kept)
            scores, nodes = kept.of(scores), kept.of(nodes)
            counts, is_live = counts[:, kept.order], is_live[kept.order]
        width = int(is_live.sum(1).max())
        scores, nodes = scores[:, :width], nodes[:, :width]
        places = np.stack(is_live.nonzero())  # [2, n]
        rows, columns = torch.from_numpy(places).to(nodes.device)

        fed_before = self.cache.get_seq_length()
        chosen = nodes[rows, columns]
        self.slots[rows, chosen] = fed_before + columns
        self.frontier[rows, chosen] = -math.inf
        self.expanded.index_add_(0, self.users[rows], torch.ones_like(rows))
        positions = self.prompt_lengths[:, None] + self.trie.depth[nodes] - 1
        mask = self._mask(nodes, fed_before + width)
        keys = self.cached_positions
        if self.layer_kinds.has_windows:
            self.cached_positions = torch.cat([keys, positions], dim=1)
            keys = F.pad(self.cached_positions, (0, mask.shape[3] - fed_before - width))
        longest = self.prompts.width + self.trie.max_depth
        with grouped_heads():
            hidden = self.body(
                input_ids=self.trie.token[nodes].clamp(min=0),
                position_ids=positions,
                attention_mask=self.layer_kinds.masks(mask, positions, keys, longest),
                **self.caching,
            ).last_hidden_state  # [R, m, H]
        self._score_children(
            rows,
            chosen,
            scores[rows, columns],
            hidden[rows, columns],
            counts[:, places[0], places[1]],
        )
        return True

    def _mask(self, nodes: Tensor, total: int) -> Tensor:
        """Additive mask [R, 1, m, total]: own prompt, own ancestors, self; `total` is `aligned`."""
        width = aligned(total, nodes.device)
        mask = self.prompt_mask.new_full((*nodes.shape, width), self.masked)
        mask[:, :, : self.prompt_mask.shape[1]] = self.prompt_mask[:, None]
        path = self.trie.path[nodes]  # [R, m, D]
        slots = self.slots.gather(1, path.flatten(1)).view(path.shape)
        return mask.scatter_(2, slots, 0.0)[:, None]

    def _score_children(
        self, rows: Tensor, nodes: Tensor, scores: Tensor, hidden: Tensor, counts: np.ndarray
    ) -> None:
        """Score all children of n fed nodes and store them.

        Args:
            rows: long [n], the batch row of each node.
            nodes: long [n], internal nodes.
            scores: [n], log-probability of each node's prefix.
            hidden: [n, H], last hidden states at the nodes.
            counts: int [2, n], on the host: their children, and the items that end at these.
        """
        trie = self.trie
        n_children, n_items = counts.sum(1).tolist()
        source, position = unfold_spans(
            trie.child_start[nodes], trie.child_count[nodes], n_children
        )
        children = trie.children[position]
        token_logps = head_logps(hidden, self.head, source, trie.token[children], counts=counts[0])
        if self.catalogue.normalised:
            token_logps = log_softmax_within(token_logps, source, len(nodes))
        child_scores = scores[source] + token_logps
        self.found_nan |= child_scores.isnan().any()
        self._file(rows[source], children, child_scores, n_items)

    def _file(self, rows: Tensor, children: Tensor, child_scores: Tensor, n_items: int) -> None:
        """Store n scored nodes as open prefixes or complete items, of which there are `n_items`.

        The other arguments are [n].
        """
        trie = self.trie
        is_inner = children < trie.num_internal
        inner = torch.where(is_inner, children, ROOT)  # the root is never open
        is_open = is_inner & self.alive[self.users[rows], inner]
        self.frontier[rows, inner] = torch.where(is_open, child_scores, -math.inf)

        ends = trie.item_count[children].masked_fill(is_inner, 0)
        source, position = unfold_spans(trie.item_start[children], ends, n_items)
        items, users = trie.item_order[position], self.users[rows[source]]
        item_scores = child_scores[source]
        if self.found:
            self.item_logps[users, items] = torch.where(
                self.allowed[users, items], item_scores, -math.inf
            )
        if self.item_bias is not None:
            item_scores = item_scores + self.item_bias[users, items]
        self.item_scores[users, items] = torch.where(
            self.allowed[users, items], item_scores, -math.inf
        )

    def _keep(self, kept: KeptRows) -> None:
        """Reduce the batch to these rows."""
        tables = "users prompt_lengths prompt_mask cached_positions frontier slots"
        for name in tables.split():
            setattr(self, name, kept.of(getattr(self, name)))
        if self.largest_bias is not None:
            self.largest_bias = kept.of(self.largest_bias)
        for layer in self.cache.layers:
            assert isinstance(layer, BufferedLayer)
            layer.keep_rows(kept)


def _largest_below(trie: ItemTrie, item_bias: Tensor) -> Tensor:
    """The largest bias of the items below each internal node: [B, n_items] to [B, I].

    One pass from the deepest nodes up. −inf if all items below have −inf.
    """
    largest = item_bias.new_full((len(item_bias), len(trie.token)), -math.inf)
    items = trie.item_order
    largest.scatter_reduce_(
        1, trie.leaf_of_item[items].expand(len(item_bias), -1), item_bias[:, items], "amax"
    )
    for nodes in reversed(trie.levels):
        parents = trie.parent[nodes].expand(len(item_bias), -1)
        largest.scatter_reduce_(1, parents, largest[:, nodes], "amax")
    return largest[:, : trie.num_internal]


def _any_below(trie: ItemTrie, allowed: Tensor) -> Tensor:
    """bool [B, I], True for internal nodes with an allowed item below them."""
    running = F.pad(allowed[:, trie.item_order].cumsum(1, dtype=torch.int32), (1, 0))
    start = trie.item_start[: trie.num_internal]
    return running[:, start + trie.item_count[: trie.num_internal]] > running[:, start]
