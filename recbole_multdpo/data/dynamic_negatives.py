"""Negatives drawn by the policy at the start of every epoch (`negatives: dynamic`).

`training/negative_draw.py` computes the weights of the draw.
"""

from __future__ import annotations

import numpy as np
import torch

from recbole_multdpo.data.random_keys import random_uniforms
from recbole_multdpo.data.sampler import NegativeSampler, smallest_clocks
from recbole_multdpo.data.user_items import UserItems
from recbole_multdpo.errors import CheckpointError
from recbole_multdpo.runtime import processes

DYNAMIC_STREAM = 6  # separates this draw from the uniform one, which may have drawn the pool


class DynamicNegatives(NegativeSampler):
    """Returns the negatives that `draw` has drawn for the current epoch.

    Call `start_epoch`, then `draw` until every user has negatives, then `sample`.
    """

    def __init__(self, known: UserItems, n_items: int, n_negatives: int) -> None:
        """Allocate the table of negatives.

        Args:
            known: items that a user's negatives must avoid, see `NegativeSampler`.
            n_items: catalogue size with the [PAD] item 0, which is never drawn.
            n_negatives: M, negatives per user.
        """
        super().__init__(known, n_items)
        self.epoch: int | None = None
        self._drawn = np.zeros((len(known.counts), n_negatives), dtype=np.int64)
        self._is_drawn = np.zeros(len(known.counts), dtype=bool)

    def start_epoch(self, epoch: int) -> None:
        """Discard the negatives of the previous epoch."""
        self.epoch = epoch
        self._is_drawn[:] = False

    def draw_epoch(self, users: np.ndarray, n_negatives: int, *, seed: int, epoch: int) -> None:
        """Do nothing: the policy draws these negatives."""

    def pool(self, users: np.ndarray, size: int, *, seed: int, epoch: int) -> np.ndarray:
        """Candidates for the draw: int64 [B, size], uniform among available items, 0-padded."""
        return super().sample(users, size, seed=seed, epoch=epoch)

    def draw(self, users: np.ndarray, log_weights: np.ndarray, *, seed: int) -> None:
        """Draw negatives without replacement, in proportion to the remaining weights.

        Each item gets an exponential clock whose rate is its weight, and the items that ring first
        are drawn. In logarithms, where no weight overflows, this is the Gumbel top-k trick. The
        draw is a function of the weights and of (seed, epoch, user).

        Args:
            users: int64 [B].
            log_weights: float [B, n_items], up to a constant per user; −inf excludes an item. Known
                items and item 0 are never drawn.
            seed: the run's seed.

        Raises:
            ValueError: a log-weight is NaN or +inf.
        """
        if not (log_weights < np.inf).all():
            raise ValueError("log_weights must be finite or -inf")
        assert self.epoch is not None, "start_epoch has not been called"
        items = np.arange(self.n_items)
        uniforms = random_uniforms(seed, self.epoch, DYNAMIC_STREAM, users[:, None], items)
        never = self.known_mask(users) | (items == 0) | np.isneginf(log_weights)
        with np.errstate(divide="ignore"):  # log 0: this clock rings first
            clocks = np.log(-np.log1p(-uniforms))
        clocks = np.where(never, np.inf, clocks - np.where(never, 0.0, log_weights))
        self._drawn[users] = smallest_clocks(clocks, self._drawn.shape[1])
        self._is_drawn[users] = True

    def exchange(self) -> None:
        """All-gather the draws of all processes, each of which has drawn for its own users."""
        own = np.where(self._is_drawn[:, None], self._drawn, 0)
        self._drawn = processes.all_reduce_sum(torch.from_numpy(own)).numpy()
        self._is_drawn = (
            processes.all_reduce_sum(torch.from_numpy(self._is_drawn.astype(int))).numpy() > 0
        )

    def state(self) -> dict[str, torch.Tensor]:
        """Draws of the current epoch, for checkpoints: the policy that made them keeps changing."""
        return {
            "drawn": torch.from_numpy(self._drawn.astype(np.int32)),
            "is_drawn": torch.from_numpy(self._is_drawn.copy()),
        }

    def restore(self, epoch: int, state: dict[str, torch.Tensor]) -> None:
        """Restore the `state` of an epoch.

        Raises:
            CheckpointError: the number of users or of negatives differs.
        """
        drawn, is_drawn = state["drawn"].numpy(), state["is_drawn"].numpy()
        if drawn.shape != self._drawn.shape or is_drawn.shape != self._is_drawn.shape:
            raise CheckpointError(
                f"the saved negatives have shape {list(drawn.shape)} instead of "
                f"{list(self._drawn.shape)}. Use the data and the settings of the checkpoint."
            )
        self.start_epoch(epoch)
        self._drawn[:] = drawn
        self._is_drawn[:] = is_drawn

    def sample(self, users: np.ndarray, n_negatives: int, *, seed: int, epoch: int) -> np.ndarray:
        """The drawn negatives of users, see `NegativeSampler.sample`.

        Raises:
            ValueError: a user has no draw in this epoch, or `n_negatives` exceeds the constructor's
                `n_negatives`.
        """
        if epoch != self.epoch or not self._is_drawn[users].all():
            raise ValueError(f"the dynamic negatives of epoch {epoch} have not been drawn")
        if n_negatives > self._drawn.shape[1]:
            raise ValueError(f"{n_negatives} negatives, but only {self._drawn.shape[1]} were drawn")
        return self._drawn[users, :n_negatives]
