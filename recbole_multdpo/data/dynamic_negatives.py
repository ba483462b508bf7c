"""Negatives drawn by weights that the model gives, for every example at the start of an epoch."""

from __future__ import annotations

import numpy as np
import torch

from recbole_multdpo.data.contexts import UserItems
from recbole_multdpo.data.random_keys import random_uniforms
from recbole_multdpo.data.sampler import NegativeSampler, first_to_ring
from recbole_multdpo.errors import CheckpointError
from recbole_multdpo.runtime import processes

DYNAMIC_STREAM = 6  # keeps this draw apart from the uniform one, which may have chosen the pool


class DynamicNegatives(NegativeSampler):
    """Serves the negatives that `draw` has drawn for the present epoch.

    Used in the order: `start_epoch`, `draw` until every user was drawn for, then `sample`.
    """

    def __init__(self, known: UserItems, n_items: int, n_negatives: int) -> None:
        """Make room for the draw.

        Args:
            known: the items a user's negatives must avoid, see `NegativeSampler`.
            n_items: catalogue size with the [PAD] item 0, which is never drawn.
            n_negatives: M, negatives per user.
        """
        super().__init__(known, n_items)
        self.epoch: int | None = None
        self._drawn = np.zeros((len(known.counts), n_negatives), dtype=np.int64)
        self._is_drawn = np.zeros(len(known.counts), dtype=bool)

    def start_epoch(self, epoch: int) -> None:
        """Forget the negatives of the epoch before."""
        self.epoch = epoch
        self._is_drawn[:] = False

    def draw_epoch(self, users: np.ndarray, n_negatives: int, *, seed: int, epoch: int) -> None:
        """Nothing: these negatives are drawn by the policy."""

    def pool(self, users: np.ndarray, size: int, *, seed: int, epoch: int) -> np.ndarray:
        """Items [B, size] from which to draw, uniform among the available ones; 0-padded."""
        return super().sample(users, size, seed=seed, epoch=epoch)

    def draw(self, users: np.ndarray, log_weights: np.ndarray, *, seed: int) -> None:
        """Draw without replacement, in proportion to the weights that are left.

        Each item gets an exponential clock whose rate is its weight; the items whose clocks ring
        first are the draw. In logarithms this is the Gumbel top-k trick, and no weight overflows.
        The draw is a function of the weights and of (seed, epoch, user).

        Args:
            users: int64 [B].
            log_weights: float [B, n_items], up to a constant per user; −inf for items that must
                not be drawn. Known items and item 0 are never drawn.
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
        with np.errstate(divide="ignore"):  # a clock of 0 rings first
            clocks = np.log(-np.log1p(-uniforms))
        clocks = np.where(never, np.inf, clocks - np.where(never, 0.0, log_weights))
        self._drawn[users] = first_to_ring(clocks, self._drawn.shape[1])
        self._is_drawn[users] = True

    def exchange(self) -> None:
        """Give all processes what each of them has drawn, every user by one of them."""
        own = np.where(self._is_drawn[:, None], self._drawn, 0)
        self._drawn = processes.all_reduce_sum(torch.from_numpy(own)).numpy()
        self._is_drawn = (
            processes.all_reduce_sum(torch.from_numpy(self._is_drawn.astype(int))).numpy() > 0
        )

    def state(self) -> dict[str, torch.Tensor]:
        """What was drawn for the present epoch: the policy that drew it is gone a step later."""
        return {
            "drawn": torch.from_numpy(self._drawn.astype(np.int32)),
            "is_drawn": torch.from_numpy(self._is_drawn.copy()),
        }

    def restore(self, epoch: int, state: dict[str, torch.Tensor]) -> None:
        """Put `state` of an epoch back.

        Raises:
            CheckpointError: it is of other users or another number of negatives.
        """
        drawn, is_drawn = state["drawn"].numpy(), state["is_drawn"].numpy()
        if drawn.shape != self._drawn.shape or is_drawn.shape != self._is_drawn.shape:
            raise CheckpointError(
                f"the saved negatives are {list(drawn.shape)} items, and {list(self._drawn.shape)} "
                "are needed. Use the data and the settings of the checkpoint."
            )
        self.start_epoch(epoch)
        self._drawn[:] = drawn
        self._is_drawn[:] = is_drawn

    def sample(self, users: np.ndarray, n_negatives: int, *, seed: int, epoch: int) -> np.ndarray:
        """The drawn negatives of users, see `NegativeSampler.sample`.

        Raises:
            ValueError: nothing was drawn for one of them in this epoch, or fewer than `n_negatives`
                were asked for when this object was made.
        """
        if epoch != self.epoch or not self._is_drawn[users].all():
            raise ValueError(f"the dynamic negatives of epoch {epoch} have not been drawn")
        if n_negatives > self._drawn.shape[1]:
            raise ValueError(f"{n_negatives} negatives, but only {self._drawn.shape[1]} were drawn")
        return self._drawn[users, :n_negatives]
