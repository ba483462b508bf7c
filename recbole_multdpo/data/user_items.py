"""Users' items in time order, and their split into history and targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recbole_multdpo.data.random_keys import random_keys, random_uniforms
from recbole_multdpo.data.spans import unfold_spans

RANKING_STREAM = 5
SPLIT_STREAM = 1  # separates this draw from the sampler's draws of negatives


@dataclass(frozen=True)
class UserItems:
    """Items per user in compressed rows: user u has entries `start[u]:start[u + 1]`, oldest first.

    Attributes:
        start: int64 [n_users + 1].
        items: int64 [n_interactions], inner item ids.
        levels: int64 [n_interactions], preference level of each interaction (1 or higher).
    """

    start: np.ndarray
    items: np.ndarray
    levels: np.ndarray

    @classmethod
    def build(
        cls,
        users: np.ndarray,
        items: np.ndarray,
        levels: np.ndarray,
        times: np.ndarray | None,
        n_users: int,
    ) -> UserItems:
        """Group interactions by user.

        A repeated (user, item) pair counts once, at its latest time and with its highest level.

        Args:
            users: integer [n], inner user ids below `n_users`.
            items: integer [n], inner item ids.
            levels: integer [n], preference levels, 1 or higher.
            times: [n] in any increasing unit; equal times keep the given order. None: the rows are
                in order of time.
            n_users: users of the data set; those without interactions have no entries.
        """
        position = np.arange(len(users))
        order = np.lexsort((position, position if times is None else times, users))
        users, items, levels = users[order], items[order], levels[order]
        # walk from the latest back, so that np.unique keeps a pair's latest occurrence
        pair = users.astype(np.int64) * (int(items.max(initial=0)) + 1) + items
        _, latest, group = np.unique(pair[::-1], return_index=True, return_inverse=True)
        highest = np.zeros(len(latest), dtype=np.int64)
        np.maximum.at(highest, group, levels[::-1])
        kept = len(pair) - 1 - latest
        in_order = np.argsort(kept)
        kept, highest = kept[in_order], highest[in_order]
        counts = np.bincount(users[kept], minlength=n_users)
        return cls(np.concatenate([[0], counts.cumsum()]), items[kept].astype(np.int64), highest)

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[int]]) -> UserItems:
        """Users 0, 1, ... with their items, oldest first, all of level 1."""
        users = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
        items = np.array([item for items in lists for item in items], dtype=np.int64)
        return cls.build(users, items, np.ones(len(items), dtype=np.int64), None, len(lists))

    def union(self, other: UserItems) -> UserItems:
        """Each user's items of both, without repeats; items of `other` come last."""
        users = [np.repeat(np.arange(len(part.counts)), part.counts) for part in (self, other)]
        return UserItems.build(
            np.concatenate(users),
            np.concatenate([self.items, other.items]),
            np.concatenate([self.levels, other.levels]),
            None,
            len(self.counts),
        )

    def with_groups(self, group: np.ndarray) -> UserItems:
        """Each user's items, followed by all other items of the same groups.

        Args:
            group: int64 [n_items], group number of each item, 0 or higher; an item without
                equivalents is alone in its group. The entry of item 0, the padding, is ignored.
        """
        size = np.bincount(group[1:])
        is_shared = size[group[self.items]] > 1
        if not is_shared.any():
            return self
        by_group = np.argsort(group[1:], kind="stable") + 1
        first = size.cumsum() - size
        owners = np.repeat(np.arange(len(self.counts)), self.counts)[is_shared]
        groups = group[self.items[is_shared]]
        rows, members = unfold_spans(first[groups], size[groups])
        others = UserItems.build(
            owners[rows],
            by_group[members],
            self.levels[is_shared][rows],
            None,
            len(self.counts),
        )
        return self.union(others)

    def holds(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """bool [n], True where `items` [n] contains an item of the user in `users` [n]."""
        stride = max(int(self.items.max(initial=0)), int(items.max(initial=0))) + 1
        owners = np.repeat(np.arange(len(self.counts)), self.counts)
        return np.isin(users * stride + items, owners * stride + self.items)

    @property
    def counts(self) -> np.ndarray:
        """Number of items of every user, int64 [n_users]."""
        return np.diff(self.start)

    def history(self, user: int) -> np.ndarray:
        """All items of a user, oldest first."""
        return self.items[self.start[user] : self.start[user + 1]]


@dataclass(frozen=True)
class HistorySplit:
    """Histories and targets drawn for a batch of users.

    Attributes:
        histories: item ids that each prompt may show; 'temporal': oldest first, 'random': in random
            order. Empty for a user with one item.
        targets: held-out item ids of each example, at least one.
        target_levels: preference levels of the targets.
        disliked: low-rated item ids that each prompt may show; None for none.
    """

    histories: list[np.ndarray]
    targets: list[np.ndarray]
    target_levels: list[np.ndarray]
    disliked: list[np.ndarray] | None = None


def n_targets(counts: np.ndarray, target_share: float, max_targets: int) -> np.ndarray:
    """Number of targets per example, int64: a share of the user's items, half rounded up.

    At least 1 and at most `max_targets`; a user with two or more items keeps one for the history.
    """
    share = np.floor(counts * target_share + 0.5).astype(np.int64)
    return np.minimum(np.clip(share, 1, max_targets), np.maximum(counts - 1, 1))


def ranking_histories(
    known_items: UserItems, users: np.ndarray, *, seed: int, mode: str, max_history: int
) -> list[np.ndarray]:
    """Histories shown in prompts at evaluation: up to `max_history` known items of each user.

    They follow the training split: a random selection in random order, fixed by (seed, user), with
    mode 'random'; the latest items in order of time with 'temporal'. A model trained on random
    selections ranks better with one than with the latest items (docs/experiments.md).
    """
    if mode == "temporal":
        return [known_items.history(user)[-max_history:] for user in users.tolist()]
    histories = []
    for user in users.tolist():
        items = known_items.history(user)
        keys = random_keys(seed, RANKING_STREAM, user, np.arange(len(items)))
        histories.append(items[np.argsort(keys, kind="stable")[:max_history]])
    return histories


def split_history(
    train_items: UserItems,
    users: np.ndarray,
    *,
    seed: int,
    epoch: int,
    mode: Literal["random", "temporal", "all"],
    target_share: float,
    max_targets: int,
    max_history: int,
) -> HistorySplit:
    """Draw the history and targets of each user for an epoch.

    The draw is a function of (seed, epoch, user). It depends neither on the batch nor on the number
    of processes.

    Args:
        train_items: the users' training items.
        users: int64 [B], each with at least one item.
        seed: the run's seed.
        epoch: number of the epoch within its training stage, from 0.
        mode: 'random' holds out random items and shows the rest in random order. 'temporal' cuts
            the user's time line at a random position, holds out the items after it and shows those
            before; every cut that leaves a full window of targets is equally likely. 'all' makes
            every item a target, in random order, and shows none: the prompt shows a conversation.
        target_share: share of a user's items that is held out ('temporal': length of the window).
        max_targets: cap on targets.
        max_history: cap on the history ('temporal': the latest items before the cut).

    Raises:
        ValueError: a user has no items.
    """
    counts = train_items.start[users + 1] - train_items.start[users]
    if (counts == 0).any():
        raise ValueError(f"users without training items: {users[counts == 0][:5].tolist()}")
    if mode == "all":
        wanted, max_history = np.minimum(counts, max_targets), 0
    else:
        wanted = n_targets(counts, target_share, max_targets)
    row, entry = unfold_spans(train_items.start[users], counts)
    bounds = np.concatenate([[0], counts.cumsum()])
    histories, targets, target_levels = [], [], []
    if mode != "temporal":
        position = entry - train_items.start[users][row]  # within the user
        keys = random_keys(seed, epoch, SPLIT_STREAM, users[row], position)
        entry = entry[np.lexsort((keys, row))]
        for first, stop, held_out in zip(bounds[:-1], bounds[1:], wanted, strict=True):
            chosen = entry[first : first + held_out]
            targets.append(train_items.items[chosen])
            target_levels.append(train_items.levels[chosen])
            shown = entry[first + held_out : min(stop, first + held_out + max_history)]
            histories.append(train_items.items[shown])
        return HistorySplit(histories, targets, target_levels)
    # temporal: the cut leaves at least one item before it where the user has two or more
    uniform = random_uniforms(seed, epoch, SPLIT_STREAM, users, 0)
    earliest = np.minimum(counts - 1, 1)
    latest = np.maximum(counts - wanted, earliest)
    cut = earliest + np.floor(uniform * (latest - earliest + 1)).astype(np.int64)
    for first, stop, at, held_out in zip(bounds[:-1], bounds[1:], cut, wanted, strict=True):
        chosen = entry[first + at : min(stop, first + at + held_out)]
        targets.append(train_items.items[chosen])
        target_levels.append(train_items.levels[chosen])
        histories.append(
            train_items.items[entry[max(first, first + at - max_history) : first + at]]
        )
    return HistorySplit(histories, targets, target_levels)
