"""The set-wise sampler: all targets as positives with their levels, and M negatives per example."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from recbole_multdpo.data.batch import Prompts, SetwiseBatch
from recbole_multdpo.data.conversations import Conversations
from recbole_multdpo.data.prompt import PromptBuilder
from recbole_multdpo.data.random_keys import random_keys, random_uniforms
from recbole_multdpo.data.soft_targets import SoftTargets
from recbole_multdpo.data.spans import unfold_spans
from recbole_multdpo.data.user_items import HistorySplit, UserItems, split_history
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.losses.sets import (
    LOWER_NEGATIVE_LEVEL,
    NEGATIVE_LEVEL,
    PADDING_LEVEL,
    POSITIVE_LEVEL,
)

# streams separate these draws from the history/target split and from each other
REJECTION_STREAM, SORTING_STREAM, LOW_STREAM, DISLIKED_STREAM = 2, 3, 8, 14
REJECTION_ROUNDS = 8
ROWS_AT_ONCE = 8192  # users per block: few calls, and arrays within the last-level cache
FILTER_BITS = 2**12  # slots of a user's filter of known items, a power of two


class NegativeSampler:
    """Draws distinct negatives outside each user's known items.

    Item weights are w_i = 1 (uniform) or popularity^alpha. Draws are sequential, without
    replacement, in proportion to the remaining weights. Items of weight 0 are never drawn.

    Attributes:
        n_available: int64 [n_users], number of items that can be drawn for each user; 0: the user's
            examples have no negatives.
    """

    def __init__(self, known: UserItems, n_items: int, weights: np.ndarray | None = None) -> None:
        """Prepare the draw.

        Args:
            known: items that a user's negatives must avoid: the training items. Validation and test
                items are not avoided: their absence would reveal them to the model.
            n_items: catalogue size with the [PAD] item 0, which is never drawn.
            weights: float [n_items], not negative; None for uniform.

        Raises:
            ValueError: weights of the wrong shape, negative or all zero.
            ConfigError: the sum of the weights overflows.
        """
        self.known = known
        self.n_items = n_items
        weights = np.ones(n_items) if weights is None else np.array(weights, dtype=np.float64)
        if weights.shape != (n_items,) or not (weights >= 0).all() or not weights[1:].any():
            raise ValueError("weights must be [n_items], not negative, and positive somewhere")
        weights[0] = 0.0
        with np.errstate(over="ignore"):
            overflow = not np.isfinite(weights.sum())
        if overflow:
            raise ConfigError("the weights of the items overflow; lower --popularity_alpha")
        self._weights = weights
        self._is_uniform = bool((weights[1:] == weights[1]).all())
        # divided by its own last entry, which becomes exactly 1, above every uniform number;
        # weights.sum() adds in another order and may be larger
        self._cumulative = weights.cumsum()
        self._cumulative /= self._cumulative[-1]
        users = np.repeat(np.arange(len(known.counts)), known.counts)
        # sentinels above all pairs keep every search inside the array
        self._search_steps = (
            1 << np.arange(int(known.counts.max(initial=0)).bit_length())[::-1]
        ).tolist()
        ends = np.full(sum(self._search_steps) + 1, np.iinfo(np.int64).max)
        self._known_pairs = np.concatenate([np.sort(users * n_items + known.items), ends])
        drawable = weights > 0
        n_known_drawable = np.bincount(
            users, weights=drawable[known.items], minlength=len(known.counts)
        )
        self.n_available = drawable.sum() - n_known_drawable.astype(np.int64)
        self._filter = self._known_filter()
        self._table_key: tuple[int, int, int] | None = None
        self._table = np.zeros((0, 0), dtype=np.int32)
        self._in_table = np.zeros(0, dtype=bool)

    def known_mask(self, users: np.ndarray) -> np.ndarray:
        """bool [B, n_items], True for items that are known to the user in `users` [B]."""
        mask = np.zeros((len(users), self.n_items), dtype=bool)
        mask[self._known_entries(users)] = True
        return mask

    def is_known(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """bool [B, K], True for `items` [B, K] that are known to the user in `users` [B].

        A binary search among all known pairs misses the processor's cache at every step. A Bloom
        filter per user rules out nearly all items first; only the rest is searched.
        """
        shift = items.astype(np.uint8)
        shift &= 7
        index = items >> 3
        index &= FILTER_BITS // 8 - 1
        bits = self._filter.take(index + (FILTER_BITS // 8 * users)[:, None])
        bits >>= shift
        bits &= 1
        maybe = bits.view(bool)
        found = np.flatnonzero(maybe)
        if len(found):
            maybe.ravel()[found] = self._search(
                users[found // items.shape[1]], items.ravel()[found]
            )
        return maybe

    def _search(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """`is_known` of single items [K] of users [K], without the filter: bool [K].

        A binary search in the user's part of the known pairs, of all pairs at once: half the time
        of NumPy's among all, whose every step waits for a branch.
        """
        pairs = users * self.n_items + items
        place = self.known.start[users] - 1  # the last known pair that is not above the one wanted
        for step in self._search_steps:
            # pairs behind the user's own are above, too
            place += step * (self._known_pairs[place + step] <= pairs)
        return self._known_pairs[place] == pairs

    def _known_entries(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The known items of users [B], concatenated: rows [n] from 0 to B - 1, items [n]."""
        start = self.known.start[users]
        counts = self.known.start[users + 1] - start
        rows, entries = unfold_spans(start, counts)
        return rows, self.known.items[entries]

    def _known_filter(self) -> np.ndarray:
        """Filter of known items, one bit per user and slot: uint8 [n_users, FILTER_BITS / 8]."""
        n_users = len(self.known.counts)
        result = np.zeros((n_users, FILTER_BITS // 8), dtype=np.uint8)
        for first in range(0, n_users, ROWS_AT_ONCE):
            users = np.arange(first, min(first + ROWS_AT_ONCE, n_users))
            rows, items = self._known_entries(users)
            bits = np.zeros((len(users), FILTER_BITS), dtype=bool)
            bits[rows, items & (FILTER_BITS - 1)] = True
            result[users] = np.packbits(bits, axis=1, bitorder="little")
        return result

    def draw_epoch(self, users: np.ndarray, n_negatives: int, *, seed: int, epoch: int) -> None:
        """Draw all negatives of an epoch at once, much faster than `sample` batch by batch.

        The table takes four bytes per user and negative. Arguments as in `sample`.
        """
        n_users = len(self.known.counts)
        self._table = np.zeros((n_users, n_negatives), dtype=np.int32)
        self._in_table = np.zeros(n_users, dtype=bool)
        self._table[users] = self._sample(users, n_negatives, seed, epoch)
        self._in_table[users] = True
        self._table_key = (n_negatives, seed, epoch)

    def sample(self, users: np.ndarray, n_negatives: int, *, seed: int, epoch: int) -> np.ndarray:
        """Negatives of each user, in the order drawn.

        The draw is a function of (seed, epoch, user). A larger `n_negatives` extends the draw of a
        smaller one if rejection sampling serves both.

        Args:
            users: int64 [B].
            n_negatives: M, negatives per user.
            seed: the run's seed.
            epoch: number of the epoch within its training stage.

        Returns:
            int64 [B, M], padded with 0 at the end where fewer than M items are available.
        """
        if self._table_key == (n_negatives, seed, epoch) and self._in_table[users].all():
            return self._table[users].astype(np.int64)
        return self._sample(users, n_negatives, seed, epoch).astype(np.int64)

    def _sample(self, users: np.ndarray, n_negatives: int, seed: int, epoch: int) -> np.ndarray:
        """See `sample`: int32 [B, M]."""
        result = np.zeros((len(users), n_negatives), dtype=np.int32)
        if n_negatives == 0:
            return result
        # rejection is fast while most draws are accepted; otherwise sort the whole catalogue
        is_dense = self.n_available[users] < 4 * n_negatives
        rows = np.flatnonzero(~is_dense)
        n_draws = n_negatives + n_negatives // 16 + 2  # few draws are rejected
        for _ in range(REJECTION_ROUNDS):
            blocks = _blocks(rows)
            unfilled = [self._by_rejection(users, b, result, n_draws, seed, epoch) for b in blocks]
            rows = np.concatenate([rows[:0], *unfilled])
            n_draws *= 2
        for block in _blocks(np.concatenate([rows, np.flatnonzero(is_dense)])):
            result[block] = self._by_sorting(users[block], result[block], seed, epoch)
        return result

    def _by_rejection(
        self,
        users: np.ndarray,
        rows: np.ndarray,
        result: np.ndarray,
        n_draws: int,
        seed: int,
        epoch: int,
    ) -> np.ndarray:
        """Fill rows of `result` [B, M] with new, unknown items from draws with replacement.

        Returns:
            The rows that `n_draws` did not fill; they contain the accepted items, then zeros.
        """
        n_negatives = result.shape[1]
        items = self._draw(users[rows], n_draws, seed, epoch)
        # the number of accepted items up to each, in the smallest type, in which sums are fastest
        is_item = (items > 0).view(np.int8)
        place = is_item.cumsum(axis=1, dtype=np.min_scalar_type(-n_draws))
        is_full = place[:, -1] >= n_negatives
        is_kept = (place <= n_negatives) & is_item.view(bool)
        # as many in each full row: their items, one row after the other
        full = items[is_kept & is_full[:, None]]
        result[rows[is_full]] = full.reshape(-1, n_negatives)
        rows, items, place, is_kept = (each[~is_full] for each in (rows, items, place, is_kept))
        row, column = is_kept.nonzero()
        result[rows[row], place[row, column] - 1] = items[row, column]
        return rows

    def _draw(self, users: np.ndarray, n_draws: int, seed: int, epoch: int) -> np.ndarray:
        """The first draws of users [B], 0 if known or repeated: int32 [B, n_draws]."""
        index = np.arange(n_draws)
        uniforms = random_uniforms(seed, epoch, REJECTION_STREAM, users[:, None], index)
        if self._is_uniform:  # the same result as the search
            uniforms *= self.n_items - 1
            items = uniforms.astype(np.int32)
            items += 1
        else:
            items = self._cumulative.searchsorted(uniforms, side="right").astype(np.int32)
        _drop_repeats(items)
        items[self.is_known(users, items)] = 0
        return items

    def _by_sorting(
        self, users: np.ndarray, drawn: np.ndarray, seed: int, epoch: int
    ) -> np.ndarray:
        """The same distribution by exponential clocks over the whole catalogue: [B, M], 0-padded.

        The items whose clocks of rate w ring first are a draw without replacement. `drawn` [B, M]
        contains the items that rejection accepted before it gave up, then zeros. They are kept, and
        the clocks of the other items continue from there: discarding them would favour the sets
        that rejection completes easily, those of items with large weights.
        """
        n_negatives = drawn.shape[1]
        items = np.arange(self.n_items)
        # a separate stream: rejection may already have used this user's numbers
        uniforms = random_uniforms(seed, epoch, SORTING_STREAM, users[:, None], items)
        with np.errstate(divide="ignore", invalid="ignore"):  # weights of 0 are replaced below
            clocks = -np.log1p(-uniforms) / self._weights
        clocks[self.known_mask(users)] = np.inf
        np.put_along_axis(clocks, drawn, np.arange(n_negatives)[None] - n_negatives, axis=1)
        clocks[:, self._weights == 0] = np.inf
        return smallest_clocks(clocks, n_negatives)


class AllNegatives(NegativeSampler):
    """Returns every item outside a user's known ones (`num_negatives: all`)."""

    def draw_epoch(self, users: np.ndarray, n_negatives: int, *, seed: int, epoch: int) -> None:
        """Do nothing: nothing is drawn."""

    def sample(self, users: np.ndarray, n_negatives: int, *, seed: int, epoch: int) -> np.ndarray:
        """Items 1 to n_items − 1 in the place of each, 0 where known: int64 [B, n_items − 1]."""
        return np.where(self.known_mask(users)[:, 1:], 0, np.arange(1, self.n_items))


def smallest_clocks(clocks: np.ndarray, n_items: int) -> np.ndarray:
    """Columns of the smallest clocks [B, C] in each row, in ascending order: int64 [B, n_items].

    Clocks at +inf never ring; rows with fewer than `n_items` finite clocks are padded with 0.
    """
    first = np.argsort(clocks, axis=1, kind="stable")[:, :n_items]
    first[np.isposinf(np.take_along_axis(clocks, first, axis=1))] = 0
    return np.pad(first, ((0, 0), (0, n_items - first.shape[1])))


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    """Split rows into blocks of at most `ROWS_AT_ONCE`."""
    return [rows[first : first + ROWS_AT_ONCE] for first in range(0, len(rows), ROWS_AT_ONCE)]


def _drop_repeats(items: np.ndarray) -> None:
    """Set entries of items int32 [B, K] that repeat an earlier entry of their row to 0."""
    n_columns = items.shape[1]
    in_order = np.sort(items, axis=1).ravel()
    # few rows have a repetition; all neighbours are compared at once, those across two rows too
    rows = np.unique((in_order[1:] == in_order[:-1]).nonzero()[0] // n_columns)
    some = items[rows]
    # item and column in one key: sorting keys is much faster than an argsort by item
    n_bits = n_columns.bit_length()
    keys = np.left_shift(some, n_bits, dtype=np.int64)
    keys |= np.arange(n_columns)
    keys.sort(axis=1)
    item = keys >> n_bits
    row, column = (item[:, 1:] == item[:, :-1]).nonzero()
    items[rows[row], keys[row, column + 1] & (2**n_bits - 1)] = 0


class SetwiseSampler:
    """Makes `SetwiseBatch`es: prompts of drawn histories, targets as positives, and negatives."""

    def __init__(
        self,
        train_items: UserItems,
        prompts: PromptBuilder,
        negative_sampler: NegativeSampler,
        *,
        seed: int,
        history_split: Literal["random", "temporal"],
        target_share: float,
        max_targets: int,
        n_negatives: int,
        one_positive: bool,
        history_as_targets: bool = False,
        low_rated: UserItems | None = None,
        low_above_unrated: bool = False,
        conversations: Conversations | None = None,
        disliked: UserItems | None = None,
        soft_targets: SoftTargets | None = None,
    ) -> None:
        """Set up the draw.

        Args:
            train_items: training items of every user.
            prompts: builds the prompts; its `max_history` caps the history.
            negative_sampler: draws negatives.
            seed: the run's seed.
            history_split: 'random' or 'temporal', see `split_history`.
            target_share: share of a user's items held out as targets.
            max_targets: cap on targets.
            n_negatives: negatives per example; 0 for supervised fine-tuning.
            one_positive: keep one target only (DPO, S-DPO): a random one, or with 'temporal' the
                item right after the cut. The history is the same as with many positives.
            history_as_targets: True to make the items of the history, or those that the
                conversation mentions, positives of the lowest positive level too, as in a denoising
                autoencoder.
            low_rated: negatives in every example of their user, at most `max_targets` of them, that
                `negative_sampler` avoids; None for none.
            low_above_unrated: True if low-rated items rank above the drawn negatives, False if
                below.
            conversations: conversations to show instead of histories; all items of a user are then
                targets, as with the mode 'all' of `split_history`.
            disliked: low-rated items that prompts show beside histories; None for none.
            soft_targets: a teacher's targets, whose items are candidates too; None for no teacher.
        """
        self.train_items = train_items
        self.prompts = prompts
        self.negative_sampler = negative_sampler
        self.seed = seed
        self.history_split = history_split
        self.target_share = target_share
        self.max_targets = max_targets
        self.n_negatives = n_negatives
        self.one_positive = one_positive
        self.history_as_targets = history_as_targets
        self.low_rated = low_rated
        levels = (NEGATIVE_LEVEL, LOWER_NEGATIVE_LEVEL)
        self.low_level, self.unrated_level = levels if low_above_unrated else levels[::-1]
        self.conversations = conversations
        self.disliked = disliked
        self.soft_targets = soft_targets

    @property
    def most_candidates(self) -> int:
        """Upper bound of an example's number of candidates."""
        n_taught = 0
        if self.soft_targets is not None:
            n_taught = self.soft_targets.n_items or len(self.soft_targets.texts)
        positives = 1 if self.one_positive else self.max_targets
        if self.history_as_targets and self.conversations is None:
            positives += self.prompts.max_history or 0
        elif self.history_as_targets and self.conversations is not None:
            positives += int(self.conversations.mentioned.counts.max(initial=0))
        else:
            positives = min(positives, int(self.train_items.counts.max()))
        n_low = 0 if self.low_rated is None else self.max_targets
        return positives + self.n_negatives + n_low + n_taught

    def split(self, users: np.ndarray, epoch: int) -> HistorySplit:
        """Histories, targets and low-rated items to show, of users int64 [B] in an epoch."""
        split = split_history(
            self.train_items,
            users,
            seed=self.seed,
            epoch=epoch,
            mode=self.history_split if self.conversations is None else "all",
            target_share=self.target_share,
            max_targets=self.max_targets,
            max_history=self.prompts.max_history or 0,
        )
        if self.disliked is None:
            return split
        return replace(split, disliked=[self._disliked(user, epoch) for user in users.tolist()])

    def _disliked(self, user: int, epoch: int) -> np.ndarray:
        """Low-rated items that a user's prompt may show in an epoch, in random order.

        As many of them are left out as of the liked ones: a prompt that always showed the same
        items would name the user, whose targets could be learnt by heart.
        """
        assert self.disliked is not None
        items = self.disliked.history(user)
        keys = random_keys(self.seed, epoch, DISLIKED_STREAM, user, items)
        n_hidden = int(len(items) * self.target_share + 0.5)
        return items[np.argsort(keys, kind="stable")[n_hidden:]]

    def build_prompts(self, users: np.ndarray, split: HistorySplit) -> Prompts:
        """Prompts of users int64 [B], with the split's histories or the users' conversations."""
        if self.conversations is None:
            return self.prompts.build(split.histories, disliked=split.disliked)
        return self.prompts.build([self.conversations.of(user) for user in users.tolist()])

    def shown_items(self, users: np.ndarray, split: HistorySplit) -> list[np.ndarray]:
        """Items of each example's history, or items that its conversation mentions."""
        if self.conversations is None:
            return split.histories
        return [self.conversations.mentioned.history(user) for user in users.tolist()]

    def sample(self, users: np.ndarray, epoch: int) -> SetwiseBatch:
        """Make the batch of some users in an epoch.

        Args:
            users: int64 [B], B >= 1, each with training items.
            epoch: number of the epoch within its training stage.

        Returns:
            B examples; candidates are [positives | low-rated items | drawn negatives], each part
            padded separately.
        """
        users = np.asarray(users, dtype=np.int64)
        split = self.split(users, epoch)
        n_kept = 1 if self.one_positive else self.max_targets
        targets = [chosen[:n_kept] for chosen in split.targets]
        levels = [chosen[:n_kept] for chosen in split.target_levels]
        if self.history_as_targets:
            known = [
                shown[~np.isin(shown, chosen)]
                for shown, chosen in zip(self.shown_items(users, split), targets, strict=True)
            ]
            targets = [np.concatenate(pair) for pair in zip(targets, known, strict=True)]
            levels = [
                np.concatenate([of_targets, np.full(len(shown), POSITIVE_LEVEL)])
                for of_targets, shown in zip(levels, known, strict=True)
            ]
        negatives = self.negative_sampler.sample(
            users, self.n_negatives, seed=self.seed, epoch=epoch
        )

        low = [self._low_rated(user, epoch) for user in users.tolist()]
        low_levels = [np.full(len(chosen), self.low_level) for chosen in low]
        unrated_levels = np.where(negatives > 0, self.unrated_level, PADDING_LEVEL)
        candidates = [_padded(targets, 0), _padded(low, 0), negatives]
        all_levels = [_padded(levels, PADDING_LEVEL), _padded(low_levels, PADDING_LEVEL)]

        batch = SetwiseBatch(
            user_ids=torch.from_numpy(users),
            prompts=self.build_prompts(users, split),
            candidates=torch.from_numpy(np.concatenate(candidates, axis=1)),
            levels=torch.from_numpy(np.concatenate([*all_levels, unrated_levels], axis=1)),
        )
        if self.soft_targets is None:
            return batch
        shown = self.shown_items(users, split)
        disliked = None
        if self.conversations is None:
            shown = [self.prompts.kept(items) for items in shown]
        if split.disliked is not None:
            pairs = zip(split.disliked, shown, strict=True)
            disliked = [self.prompts.kept_disliked(low, kept) for low, kept in pairs]
        return with_soft_targets(batch, self.soft_targets, shown, disliked)

    def _low_rated(self, user: int, epoch: int) -> np.ndarray:
        """Low-rated items of a user's example, at most `max_targets`, drawn for each epoch."""
        if self.low_rated is None:
            return np.zeros(0, dtype=np.int64)
        items = self.low_rated.history(user)
        keys = random_keys(self.seed, epoch, LOW_STREAM, user, items)
        return items[np.argsort(keys, kind="stable")[: self.max_targets]]


def with_soft_targets(
    batch: SetwiseBatch,
    targets: SoftTargets,
    shown: list[np.ndarray],
    disliked: list[np.ndarray] | None = None,
) -> SetwiseBatch:
    """Copy of a batch with a teacher's probabilities, of its candidates and of further ones.

    Over the whole catalogue the candidates become all items, in order of their ids. Else the
    teacher's best items are added, and the probabilities of all candidates are divided by their
    sum.

    Args:
        batch: examples without a teacher.
        targets: the teacher's.
        shown: item ids that each prompt shows, in its order.
        disliked: low-rated item ids that each prompt shows; None for none.
    """
    probs = torch.from_numpy(targets.probabilities(batch.user_ids.numpy(), shown, disliked))
    candidates, levels = batch.candidates, batch.levels
    if targets.n_items is None:
        every_item = torch.arange(probs.shape[1]).expand(len(batch), -1)
        of_items = torch.full_like(every_item, PADDING_LEVEL)
        of_items.scatter_(1, candidates, levels)
        of_items[:, 0] = PADDING_LEVEL
        return replace(batch, candidates=every_item, levels=of_items, teacher_probs=probs)
    added = torch.from_numpy(targets.best(probs.numpy()))
    added[(added[:, :, None] == candidates[:, None, :]).any(2)] = 0
    candidates = torch.cat([candidates, added], 1)
    levels = torch.cat([levels, torch.full_like(added, PADDING_LEVEL)], 1)
    kept = probs.gather(1, candidates)
    kept = kept / kept.sum(1, keepdim=True).clamp(min=1e-12)
    return replace(batch, candidates=candidates, levels=levels, teacher_probs=kept)


def _padded(rows: list[np.ndarray], value: int) -> np.ndarray:
    """Rows of different lengths as one int64 array [B, longest], padded with `value`."""
    lengths = np.array([len(row) for row in rows])
    result = np.full((len(rows), int(lengths.max(initial=0))), value, dtype=np.int64)
    result[np.arange(result.shape[1]) < lengths[:, None]] = np.concatenate(rows)
    return result
