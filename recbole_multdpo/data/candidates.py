"""Candidates of validation and test, which are the same for every model and evaluation.

RecBole's `uniN` and `popN` draw N others for each held-out item: a user with eight held-out items
has up to 8 (N + 1) candidates. With `totalN`, which is ours, every user has N in total. RecBole
takes its draws from one stream of random numbers, so that they differ between models, evaluations
and numbers of processes. Here a draw is a function of seed, phase, user and catalogue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from logging import getLogger
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataloader import NegSampleEvalDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction, cat_interactions

from recbole_multdpo.data.candidate_lists import candidate_lists
from recbole_multdpo.data.random_keys import random_keys, random_uniforms
from recbole_multdpo.data.sequences import first_events
from recbole_multdpo.errors import DataError
from recbole_multdpo.settings.recbole import total_candidates

# separate from the training draws
CANDIDATE_STREAM, CANDIDATE_SORTING_STREAM, REPEATED_STREAM = 9, 10, 11
_PHASES = ("valid", "test")


class CandidateDraw:
    """Random items that a user does not know, the same for every model.

    Draws are keyed by the tokens of user and item. Inner ids would not do: they differ between
    models that load different files.
    """

    def __init__(self, seed: int, phase: str, dataset: Dataset) -> None:
        """Prepare the draw.

        Args:
            seed: the run's seed.
            phase: `valid` or `test`.
            dataset: any part of the split.
        """
        tokens = dataset.field2id_token
        self._user_keys = token_keys(tokens[dataset.uid_field])
        self._item_keys = token_keys(tokens[dataset.iid_field])
        # [PAD], item 0, is never drawn
        self._items = np.argsort(self._item_keys[1:], kind="stable") + 1
        self._seed = seed, _PHASES.index(phase)

    def draw(self, user: int, known: set[int], n_items: int) -> np.ndarray:
        """Distinct unknown items, int64 [`n_items`]; fewer if the catalogue has fewer.

        Args:
            user: inner id.
            known: inner ids of the items that cannot be drawn.
            n_items: number of items to draw.
        """
        n_available = len(self._items) - len(known - {0})
        if n_items <= 0 or n_available <= 0:
            return np.empty(0, dtype=np.int64)
        if n_available >= 4 * n_items:  # few draws hit a known item
            drawn = self._by_rejection(user, known, n_items)
            if len(drawn) == n_items:
                return drawn
        unknown = self._unknown(known)
        keys = random_keys(
            self._seed[0],
            CANDIDATE_SORTING_STREAM,
            self._seed[1],
            int(self._user_keys[user]),
            self._item_keys[unknown],
        )
        return unknown[np.argsort(keys, kind="stable")[:n_items]]

    def draw_repeatedly(
        self, user: int, known: set[int], n_items: int, weights: np.ndarray | None = None
    ) -> np.ndarray:
        """Unknown items drawn with replacement, as RecBole draws them: int64 [`n_items`].

        Args:
            user: inner id.
            known: inner ids of the items that cannot be drawn.
            n_items: number of items to draw.
            weights: float [n_items of the catalogue], not negative; None for uniform.

        Raises:
            DataError: there is no item to draw.
        """
        unknown = self._unknown(known)
        if weights is not None:
            unknown = unknown[weights[unknown] > 0]
        if not len(unknown):
            raise DataError(
                f"no candidate is left to be drawn for one of the users ({_PHASES[self._seed[1]]} "
                "part): all items that can be drawn are known. Use eval_args mode full."
            )
        uniforms = random_uniforms(
            self._seed[0],
            REPEATED_STREAM,
            self._seed[1],
            int(self._user_keys[user]),
            np.arange(n_items),
        )
        if weights is None:
            return unknown[(uniforms * len(unknown)).astype(np.int64)]
        cumulative = weights[unknown].cumsum()
        cumulative /= cumulative[-1]  # which becomes exactly 1, above every uniform number
        return unknown[cumulative.searchsorted(uniforms, side="right")]

    def _unknown(self, known: set[int]) -> np.ndarray:
        """Items that are not known, in the order of their keys."""
        is_unknown = np.ones(len(self._items) + 1, dtype=bool)
        is_unknown[list(known)] = False
        return self._items[is_unknown[self._items]]

    def _by_rejection(self, user: int, known: set[int], n_items: int) -> np.ndarray:
        uniforms = random_uniforms(
            self._seed[0],
            CANDIDATE_STREAM,
            self._seed[1],
            int(self._user_keys[user]),
            np.arange(4 * n_items + 16),
        )
        drawn = self._items[(uniforms * len(self._items)).astype(np.int64)]
        drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])]  # without repeats
        return drawn[~np.isin(drawn, list(known))][:n_items]


def token_keys(tokens: Sequence[str]) -> np.ndarray:
    """A hash of every token, uint64."""
    digests = [hashlib.blake2b(str(token).encode(), digest_size=8).digest() for token in tokens]
    return np.frombuffer(b"".join(digests), dtype="<u8")


class KeyedSampler:
    """RecBole's sampler of a phase for the loader of `uniN` and `popN`, with draws of our own.

    Attributes:
        phase: `valid` or `test`.
        used_ids: every user's known items, sets, of RecBole's sampler.
    """

    def __init__(self, config: Config, dataset: Dataset, sampler: Any) -> None:
        """Take over from RecBole's sampler.

        Args:
            config: the run's configuration (seed, eval_args).
            dataset: the part of the phase.
            sampler: RecBole's sampler, set to the phase.
        """
        self.phase, self.used_ids = sampler.phase, sampler.used_ids
        self._draw = CandidateDraw(config["seed"], sampler.phase, dataset)
        by_popularity = config["eval_args"]["mode"][sampler.phase].startswith("pop")
        self._weights = _popularity(sampler) if by_popularity else None

    def sample_by_user_ids(
        self, user_ids: Sequence[int], item_ids: Sequence[int], num: int
    ) -> torch.Tensor:
        """`num` items for each row of one user, which RecBole's loader asks for: long [n * num]."""
        user = int(user_ids[0])
        known = self.used_ids[user] | set(map(int, item_ids))
        drawn = self._draw.draw_repeatedly(user, known, len(user_ids) * num, self._weights)
        return torch.from_numpy(drawn)


def _popularity(sampler: Any) -> np.ndarray:
    """Rows of every item in all parts, which are RecBole's weights of `popN`: float [n_items]."""
    parts = sampler.datasets if hasattr(sampler, "datasets") else [sampler.dataset]
    items = [part.inter_feat[part.iid_field].numpy() for part in parts]
    items.append(first_events(parts))
    return np.bincount(np.concatenate(items), minlength=parts[0].item_num).astype(float)


class TotalCandidatesLoader(NegSampleEvalDataLoader):
    """RecBole's loader of sampled candidates, with `n_candidates` in total for every user.

    A user with `n_candidates` or more held-out items gets no other candidates.
    """

    def __init__(self, config: Config, dataset: Dataset, sampler: Any) -> None:
        """Wrap RecBole's loader; the arguments are RecBole's.

        Raises:
            DataError: no user has more candidates than the largest of `topk`.
        """
        self.n_candidates = total_candidates(config["eval_args"]["mode"][sampler.phase]) or 0
        super().__init__(config, dataset, sampler)
        self._draw = CandidateDraw(config["seed"], sampler.phase, dataset)
        self._check()

    @property
    def largest(self) -> int:
        """Candidates of a user, at most."""
        return max(self.n_candidates, int(self.uid2items_num.max(initial=0)))

    def _init_batch_size_and_step(self) -> None:
        largest = self.largest
        self.step = max(self.config["eval_batch_size"] // largest, 1)
        self.set_batch_size(self.step * largest)

    def _positives(self, user: int) -> Interaction:
        """The user's held-out rows, the first of each item."""
        rows = self._dataset.inter_feat[self.uid2index[user]]
        first = np.unique(rows[self.iid_field].numpy(), return_index=True)[1]
        return rows[np.sort(first)]

    def _listed(self, user: int, positives: np.ndarray) -> np.ndarray:
        """Mask of the user's held-out items [n] that are candidates."""
        return np.ones(len(positives), dtype=bool)

    def _negatives(self, user: int, positives: np.ndarray) -> np.ndarray:
        """The candidates that are not among the user's held-out items."""
        known = set(self._sampler.used_ids[user]) | set(positives.tolist())
        return self._draw.draw(user, known, self.n_candidates - len(positives))

    def collate_fn(self, index: Sequence[int]) -> Any:
        """RecBole's batch for the users at `index`; each user's held-out items come first."""
        batch, rows, positive_rows, positive_items, labels = [], [], [], [], []
        for row, user in enumerate(self.uid_list[np.array(index)]):
            held_out = self._positives(user)
            answers = held_out[self.iid_field]
            positives = held_out[torch.from_numpy(self._listed(user, answers.numpy()))]
            items = torch.from_numpy(self._negatives(user, answers.numpy()))
            candidates = positives
            if len(items):  # other candidates copy the input of the user's first row
                others = held_out[:1].repeat(len(items))
                others[self.iid_field] = items
                candidates = cat_interactions([positives, others])
            batch.append(candidates)
            rows.append(torch.full((len(candidates),), row))
            positive_rows.append(torch.full((len(answers),), row))
            positive_items.append(answers)
            labels.append((torch.arange(len(candidates)) < len(positives)).float())
        joined = self.transform(self._dataset, self._dataset.join(cat_interactions(batch)))
        joined.update(Interaction({self.label_field: torch.cat(labels)}))
        return joined, torch.cat(rows), torch.cat(positive_rows), torch.cat(positive_items)

    def _check(self) -> None:
        """Refuse, or warn of, rankings that contain all candidates and measure nothing."""
        if not len(self.uid_list):
            return
        n_positives = np.array([len(self._positives(user)) for user in self.uid_list])
        n_items, largest = self._dataset.item_num - 1, max(self.config["topk"])
        n_unknown = [n_items - len(self._sampler.used_ids[user] - {0}) for user in self.uid_list]
        room = np.maximum(self.n_candidates - n_positives, 0)
        n_candidates = n_positives + np.minimum(room, n_unknown)
        name = f"eval_args mode total{self.n_candidates} ({self._sampler.phase})"
        if (n_candidates <= largest).all():
            raise DataError(
                f"{name}: no user has more than {n_candidates.max()} candidates, so every item is "
                f"a hit at {largest}. Lower --topk, or use mode full."
            )
        for which, why in (
            (room == 0, "have that many held-out items and no other candidates"),
            (n_candidates < self.n_candidates, "have fewer candidates: the catalogue is too small"),
            (n_candidates <= largest, f"have at most {largest} candidates: all of them are hits"),
        ):
            if which.any():
                getLogger().warning(f"{name}: {which.sum():,} of {len(which):,} users {why}.")


class ListedCandidatesLoader(TotalCandidatesLoader):
    """RecBole's loader of sampled candidates, with each user's list from `candidate_lists`.

    Every item of a list is a candidate, known or not. Held-out items outside of the list are
    positives that cannot be found.

    Attributes:
        lists: the lists of the users of the part.
    """

    def __init__(self, config: Config, dataset: Dataset, sampler: Any) -> None:
        """Read the lists and wrap RecBole's loader; the arguments are RecBole's.

        Raises:
            DataError: see `candidate_lists`.
        """
        self.lists = candidate_lists(config, dataset)
        super().__init__(config, dataset, sampler)

    @property
    def largest(self) -> int:
        """Length of the longest list."""
        return int(self.lists.sizes.max())

    def _listed(self, user: int, positives: np.ndarray) -> np.ndarray:
        return np.isin(positives, self.lists.items[user])

    def _negatives(self, user: int, positives: np.ndarray) -> np.ndarray:
        items = self.lists.items[user]
        return items[~np.isin(items, positives)]

    def _check(self) -> None:
        pass  # `candidate_lists` has checked them


def lists_of(loader: AbstractDataLoader) -> dict[str, Any]:
    """Entry `candidate_lists` of `result.json`; {} where a loader has none."""
    if not isinstance(loader, ListedCandidatesLoader):
        return {}
    return {"candidate_lists": loader.lists.as_dict()}


def with_keyed_candidates(loader: AbstractDataLoader, phase: str) -> AbstractDataLoader:
    """Replace RecBole's draws of candidates in a loader by ours or by lists, if it has any.

    Args:
        loader: RecBole's loader of the phase; changed in place with the modes `uniN` and `popN`.
        phase: `valid` or `test`.
    """
    config = loader.config
    if phase == "test" and config["candidate_lists"] is not None:
        return ListedCandidatesLoader(config, loader._dataset, loader._sampler)
    mode = config["eval_args"]["mode"][phase]
    if total_candidates(mode) is not None:
        return TotalCandidatesLoader(config, loader._dataset, loader._sampler)
    if is_drawn_per_positive(mode):
        loader._sampler = KeyedSampler(config, loader._dataset, loader._sampler)
    return loader


def is_drawn_per_positive(mode: str) -> bool:
    """True for the modes `uniN` and `popN`."""
    return mode.startswith(("uni", "pop"))
