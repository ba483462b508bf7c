"""Held-out log-loss and reliability of a language model's probabilities over the catalogue.

Rankings use the order of the probabilities alone. Here their size is tested. Given a prompt, the
model's probability of an item that the user does not know is

    q(i) = π(i) / Σ_j π(j),    j over the items that a ranking may hold,

where items of one text share the text's probability equally, and an assistant joins in as it does
in the ranking. A user's n held-out items are taken as n draws without replacement, as Mult-DPO and
Plackett-Luce take a user's positives: item i is among them with probability

    p(i) = 1 − exp(−t q(i)),    Σ_i p(i) = n,

the share of exponential clocks of rates q that ring before the time t at which n of them are
expected to have rung.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from torch import Tensor

from recbole_multdpo.losses.plackett_luce import set_preference_logp
from recbole_multdpo.ranking.exact import ExactRanker

EDGES = (0.0, *(digit * 10.0**power for power in range(-4, 0) for digit in (1, 2, 5)), 1.0)


def log_shares(ranker: ExactRanker, users: Tensor, excluded: Tensor) -> Tensor:
    """log q of every item for B users, float64 [B, n_items], nats, −inf for excluded items.

    Args:
        ranker: whose model is in eval mode.
        users: long [B].
        excluded: bool [B, n_items], items that must not rank; the padding item 0 never does.
    """
    model, device = ranker.model, ranker.model.device
    scores = model.score_all(ranker.prompts(users))
    bias = ranker.item_bias(users.to(device))
    if bias is not None:
        scores = scores + bias
    trie = model.catalogue.trie
    of_a_text = trie.item_count[trie.leaf_of_item[1:]]
    shares = scores[:, 1:].double() - of_a_text.double().log()
    shares = shares.masked_fill(excluded[:, 1:].to(device), -torch.inf).log_softmax(1)
    return torch.nn.functional.pad(shares, (1, 0), value=-torch.inf)


def inclusion_probabilities(logq: Tensor, n: Tensor) -> Tensor:
    """p of every item for B users, see above: float64 [B, n_items].

    Args:
        logq: float64 [B, n_items], nats, −inf for items that cannot be drawn.
        n: long [B], number of draws, fewer than the items that can be drawn.
    """
    q, n = logq.exp(), n[:, None].double()
    low = n.log()  # Σ p <= t Σ q = t
    high = low + 60.0
    for _ in range(60):
        middle = (low + high) / 2
        is_low = -torch.expm1(-middle.exp() * q).sum(1, keepdim=True) < n
        low, high = torch.where(is_low, middle, low), torch.where(is_low, high, middle)
    return -torch.expm1(-high.exp() * q)


@torch.no_grad()
def calibration(ranker: ExactRanker, loader: FullSortEvalDataLoader) -> dict[str, Any]:
    """Test the probabilities of a ranker on the held-out items of a loader's users.

    Args:
        ranker: of the test, with its model in eval mode.
        loader: of full rankings, in one process.

    Returns:
        `users` and `held_out_items`; `bits_per_item`, the mean of −log2 q over the held-out items
        of all users, beside `bits_per_item_uniform` and `bits_per_item_popularity` of forecasts
        that know nothing, and the items' training rows, plus one; `bits_per_item_as_sets`, −log2 of
        the Plackett-Luce probability that a user's held-out items come before all others, in any
        order, divided by their number; `reliability`, for every range of p with items in it
        (`above`, `to`) the number of held-out items that the model expects there (Σ p) and the
        number that were there (`expected`, `found`); and `misplaced`, half of the sum of their
        differences over the number of held-out items, from 0 to 1.
    """
    field, n_items = loader.uid_field, ranker.model.n_items
    counts = np.bincount(ranker.model.histories.items, minlength=n_items)
    by_popularity = torch.from_numpy(counts[1:] + 1.0).log()
    sums = dict.fromkeys(("item", "uniform", "popularity", "set"), 0.0)
    edges = torch.tensor(EDGES[1:-1], dtype=torch.double)
    expected, found = (torch.zeros(len(EDGES) - 1).double() for _ in range(2))
    n_users = n_held_out = 0
    for interaction, known, row, item in loader:
        users = interaction[field]
        excluded = torch.zeros(len(users), n_items, dtype=torch.bool)
        if known is not None:
            excluded[known[0], known[1]] = True
        logq = log_shares(ranker, users, excluded).cpu()
        is_held_out = torch.zeros_like(excluded)
        is_held_out[row, item] = True
        n_users, n_held_out = n_users + len(users), n_held_out + len(row)
        sums["item"] -= float(logq[row, item].sum())
        is_open = ~excluded[:, 1:]
        sums["uniform"] += float(is_open.sum(1)[row].double().log().sum())
        shares = by_popularity.masked_fill(~is_open, -torch.inf).log_softmax(1)
        sums["popularity"] -= float(shares[row, item - 1].sum())
        open_logq = torch.where(logq.isfinite(), logq, 0.0)
        others = logq.isfinite() & ~is_held_out
        sums["set"] -= float(set_preference_logp(open_logq, is_held_out, others).sum())
        p = inclusion_probabilities(logq, is_held_out.sum(1))
        bins = torch.bucketize(p, edges)
        expected.index_add_(0, bins.flatten(), p.flatten())
        found.index_add_(0, bins[row, item], torch.ones(len(row)).double())
    bits = {name: total / math.log(2) / n_held_out for name, total in sums.items()}
    return {
        "users": n_users,
        "held_out_items": n_held_out,
        "bits_per_item": bits["item"],
        "bits_per_item_uniform": bits["uniform"],
        "bits_per_item_popularity": bits["popularity"],
        "bits_per_item_as_sets": bits["set"],
        "misplaced": float((expected - found).abs().sum()) / 2 / n_held_out,
        "reliability": [
            {"above": above, "to": to, "expected": float(said), "found": int(seen)}
            for above, to, said, seen in zip(EDGES, EDGES[1:], expected, found, strict=False)
        ],
    }
