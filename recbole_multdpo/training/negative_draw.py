"""The draw of dynamic negatives: once per epoch and user, by the model's own scores.

The Mult-DPO paper (4.4) draws negatives from a temperature-scaled categorical distribution of the
current policy weights (13), as SPRec does. The log-weight of an item, with temperature T, is

    ratio:   s_y / T = β [log π_θ(y|x) − log π_ref(y|x)] / T
    policy:  log π_θ(y|x) / T

for the user's prompt x of the epoch, over the items of the pool.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.dynamic_negatives import DynamicNegatives
from recbole_multdpo.data.sampler import SetwiseSampler
from recbole_multdpo.errors import TrainingError
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.ranking.exact import ExactRanker
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.console import Progress


@torch.no_grad()
def draw_negatives(
    model: LLMRec,
    sampler: SetwiseSampler,
    negatives: DynamicNegatives,
    users: np.ndarray,
    epoch: int,
    *,
    show_progress: bool = False,
) -> None:
    """Draw the negatives of the users' examples of an epoch by the current model.

    Several processes share the users; every rank gets all negatives.

    Args:
        model: in eval mode.
        sampler: builds the prompts of the epoch.
        negatives: filled with the draw.
        users: int64 [n], each with training items.
        epoch: number of the epoch within its training stage.
        show_progress: show how far it is.

    Raises:
        TrainingError: the model's log-probabilities hold NaN.
    """
    negatives.start_epoch(epoch)
    # batches of prompts of similar length have little padding
    ordered = users[np.argsort(sampler.train_items.counts[users], kind="stable")]
    size = model.settings.rank_batch_users
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    claimed = processes.work_queue(len(parts))
    for number in Progress(claimed, len(parts), "drawing negatives", show=show_progress):
        part = parts[number]
        prompts = sampler.build_prompts(part, sampler.split(part, epoch)).to(model.device)
        weights = _log_weights(model, negatives, prompts, part, sampler.seed, epoch)
        if weights.isnan().any():
            raise TrainingError(
                "the model's log-probabilities hold NaN, so that no negatives can be drawn. "
                "Lower --learning_rate, or use --dtype=float32."
            )
        negatives.draw(part, weights.double().cpu().numpy(), seed=sampler.seed)
    negatives.exchange()


def _log_weights(
    model: LLMRec,
    negatives: DynamicNegatives,
    prompts: Prompts,
    users: np.ndarray,
    seed: int,
    epoch: int,
) -> Tensor:
    """Log-weights [B, n_items] of the draw; −inf outside the pool."""
    settings = model.settings
    pool = _pool(model, negatives, prompts, users, seed, epoch)
    scores = _scores(model, model.lm, prompts, pool)
    if settings.dynamic_weights == "ratio":
        # scored by the same code as the policy, so that equal models have a ratio of exactly 0 in
        # any dtype
        with model.reference_lm() as reference:
            scores = settings.beta * (scores - _scores(model, reference, prompts, pool))
    weights = scores / settings.negative_temperature
    if pool is not None:
        everywhere = weights.new_full((len(users), model.n_items), -torch.inf)
        weights = everywhere.scatter(1, pool, weights)
    weights[:, 0] = -torch.inf
    return weights


def _pool(
    model: LLMRec,
    negatives: DynamicNegatives,
    prompts: Prompts,
    users: np.ndarray,
    seed: int,
    epoch: int,
) -> Tensor | None:
    """Items that may be drawn, long [B, n], 0-padded; None for the whole catalogue."""
    settings = model.settings
    size = min(settings.negative_pool_size, model.n_items - 1)
    if settings.negative_pool == "uniform":
        drawn = negatives.pool(users, size, seed=seed, epoch=epoch)
        return torch.from_numpy(drawn).to(model.device)
    if settings.negative_pool == "ranker":
        known = negatives.known_mask(users)
        ranker = ExactRanker(model, model.histories)
        return ranker.rank(prompts, torch.from_numpy(known).to(model.device), size).items
    return None


def _scores(model: LLMRec, lm: nn.Module, prompts: Prompts, pool: Tensor | None) -> Tensor:
    """Log-probabilities under `lm`, nats: [B, n] of the pool, or [B, n_items] of all items."""
    if pool is None:
        return model.score_all(prompts, lm)
    return model.score(prompts, pool, lm)
