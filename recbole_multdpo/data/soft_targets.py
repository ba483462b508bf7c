"""A teacher's target of a prompt: probabilities of the items that the prompt does not show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from recbole_multdpo.data.user_items import UserItems


class Teacher(Protocol):
    """A model whose scores are distilled."""

    @property
    def name(self) -> str:
        """Name of the model."""

    @property
    def by_user(self) -> bool:
        """True if the scores are of a user, False if they are of the items that a prompt shows."""

    @property
    def popularity(self) -> np.ndarray:
        """Training rows of each item, int64 [n_items]."""

    def scores(
        self,
        users: np.ndarray,
        shown: Sequence[np.ndarray],
        disliked: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        """Scores of all items for B prompts, in any unit: float32 [B, n_items].

        Args:
            users: int64 [B].
            shown: item ids of each prompt, in its order, the latest last.
            disliked: low-rated item ids of each prompt, which not every model reads; None for none.
        """


@dataclass(frozen=True)
class SoftTargets:
    """The targets of a teacher: softmax of sharpness * z over the items that are not shown.

    z is the score of an item, times its factor, standardised over the same items: of mean 0 and
    variance 1 for every prompt. So one sharpness suits all teachers and prompts of any length.

    Attributes:
        teacher: gives the scores.
        sharpness: factor of z.
        factors: float32 [n_items], factors of the scores.
        texts: int64 [n_items], number of each item's text: items of a text that the prompt shows
            have no probability either. The probability of a text is that of all its items together,
            as they have one log-probability.
        known: the training items of every user, which have no probability if the scores are of a
            user: such a teacher has learnt them by heart.
        n_items: items with probability, at most: the best, and those that are observed; None for
            the whole catalogue.
    """

    teacher: Teacher
    sharpness: float
    factors: np.ndarray
    texts: np.ndarray
    known: UserItems
    n_items: int | None

    def probabilities(
        self,
        users: np.ndarray,
        shown: Sequence[np.ndarray],
        disliked: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        """Probabilities of all items for B prompts: float32 [B, catalogue]; see `Teacher.scores`.

        Items that the prompt shows as disliked have none. A row sums to 1. It is 0 where the
        teacher tells nothing, as its scores are all equal.
        """
        scores = self.teacher.scores(users, shown, disliked) * self.factors
        hidden = list(shown)
        if disliked is not None:
            hidden = [np.concatenate(pair) for pair in zip(hidden, disliked, strict=True)]
        if self.teacher.by_user:
            hidden = [
                np.concatenate([items, self.known.history(user)])
                for user, items in zip(users.tolist(), hidden, strict=True)
            ]
        rows = np.repeat(np.arange(len(users)), [len(items) for items in hidden])
        # item 0 has the number of no text
        is_hidden = np.zeros((len(users), int(self.texts.max()) + 1), dtype=bool)
        is_hidden[rows, self.texts[np.concatenate(hidden)]] = True
        is_open = ~is_hidden[:, self.texts]
        is_open[:, 0] = False
        counts = is_open.sum(1, keepdims=True).clip(1)
        scores -= np.where(is_open, scores, 0).sum(1, keepdims=True) / counts
        scores[~is_open] = 0
        deviation = np.sqrt((scores**2).sum(1, keepdims=True) / counts)
        is_told = deviation > 1e-12
        scores *= np.divide(self.sharpness, deviation, out=np.zeros_like(deviation), where=is_told)
        scores -= scores.max(1, keepdims=True)
        probs = np.exp(scores, out=scores) * (is_open & is_told)
        return probs / probs.sum(1, keepdims=True).clip(1e-12)

    def best(self, probs: np.ndarray) -> np.ndarray:
        """Items of the `n_items` largest probabilities [B, catalogue]: int64 [B, K], 0 for none."""
        n_best = min(self.n_items or probs.shape[1], probs.shape[1] - 1)
        items = np.argpartition(-probs, n_best - 1, axis=1)[:, :n_best]
        return np.where(np.take_along_axis(probs, items, 1) > 0, items, 0)
