"""Evaluation mode `totalN`: a user's held-out items plus random others, N candidates in total.

RecBole's `uniN` draws N new negatives for each held-out item at every evaluation: a user with eight
held-out items has up to 8 (N + 1) candidates. With `totalN` every user has N, a function of seed,
phase, user and catalogue: all models and all evaluations get the same ones.
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

from recbole_multdpo.data.random_keys import random_keys, random_uniforms
from recbole_multdpo.errors import DataError
from recbole_multdpo.settings.recbole import total_candidates

CANDIDATE_STREAM, CANDIDATE_SORTING_STREAM = 9, 10  # separate from the training draws
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
        self._user_keys = _token_keys(tokens[dataset.uid_field])
        self._item_keys = _token_keys(tokens[dataset.iid_field])
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
        unknown = self._items[~np.isin(self._items, list(known))]
        keys = random_keys(
            self._seed[0],
            CANDIDATE_SORTING_STREAM,
            self._seed[1],
            int(self._user_keys[user]),
            self._item_keys[unknown],
        )
        return unknown[np.argsort(keys, kind="stable")[:n_items]]

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


def _token_keys(tokens: Sequence[str]) -> np.ndarray:
    """A hash of every token, uint64."""
    digests = [hashlib.blake2b(str(token).encode(), digest_size=8).digest() for token in tokens]
    return np.frombuffer(b"".join(digests), dtype="<u8")


class TotalCandidatesLoader(NegSampleEvalDataLoader):
    """RecBole's loader of sampled candidates, with `n_candidates` in total for every user.

    A user with `n_candidates` or more held-out items gets no other candidates.
    """

    def __init__(self, config: Config, dataset: Dataset, sampler: Any, n_candidates: int) -> None:
        """Wrap RecBole's loader; all arguments but `n_candidates` are RecBole's.

        Raises:
            DataError: no user has more candidates than the largest of `topk`.
        """
        self.n_candidates = n_candidates
        super().__init__(config, dataset, sampler)
        self._draw = CandidateDraw(config["seed"], sampler.phase, dataset)
        self._check()

    def _init_batch_size_and_step(self) -> None:
        largest = max(self.n_candidates, int(self.uid2items_num.max(initial=0)))
        self.step = max(self.config["eval_batch_size"] // largest, 1)
        self.set_batch_size(self.step * largest)

    def _positives(self, user: int) -> Interaction:
        """The user's held-out rows, the first of each item."""
        rows = self._dataset.inter_feat[self.uid2index[user]]
        first = np.unique(rows[self.iid_field].numpy(), return_index=True)[1]
        return rows[np.sort(first)]

    def _negatives(self, user: int, positives: Interaction) -> np.ndarray:
        known = set(self._sampler.used_ids[user]) | set(positives[self.iid_field].tolist())
        return self._draw.draw(user, known, self.n_candidates - len(positives))

    def collate_fn(self, index: Sequence[int]) -> Any:
        """RecBole's batch for the users at `index`; each user's held-out items come first."""
        batch, rows, positive_rows, positive_items, labels = [], [], [], [], []
        for row, user in enumerate(self.uid_list[np.array(index)]):
            positives = self._positives(user)
            items = torch.from_numpy(self._negatives(user, positives))
            candidates = positives
            if len(items):  # other candidates copy the input of the user's first row
                others = positives[:1].repeat(len(items))
                others[self.iid_field] = items
                candidates = cat_interactions([positives, others])
            batch.append(candidates)
            rows.append(torch.full((len(candidates),), row))
            positive_rows.append(torch.full((len(positives),), row))
            positive_items.append(positives[self.iid_field])
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


def with_total_candidates(loader: AbstractDataLoader, phase: str) -> AbstractDataLoader:
    """Replace a loader by a `TotalCandidatesLoader` if the phase's mode is `totalN`.

    Args:
        loader: RecBole's loader of the phase.
        phase: `valid` or `test`.
    """
    config = loader.config
    n_candidates = total_candidates(config["eval_args"]["mode"][phase])
    if n_candidates is None:
        return loader
    return TotalCandidatesLoader(config, loader._dataset, loader._sampler, n_candidates)
