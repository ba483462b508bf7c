"""Data loaders: examples for training, users for ranking; RecBole's loaders, minimally changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.data.utils import create_samplers

from recbole_multdpo.data.batch import SetwiseBatch
from recbole_multdpo.data.candidates import (
    KeyedSampler,
    ListedCandidatesLoader,
    TotalCandidatesLoader,
    is_drawn_per_positive,
    token_keys,
)
from recbole_multdpo.data.conversations import Conversations
from recbole_multdpo.data.counted_dataset import CountedDataset
from recbole_multdpo.data.dataset import ContextDataset
from recbole_multdpo.data.random_keys import random_keys
from recbole_multdpo.data.sampler import SetwiseSampler
from recbole_multdpo.data.user_items import UserItems
from recbole_multdpo.errors import DataError
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.console import log_detail

SHUFFLE_STREAM = 4  # separates the order of examples from the sampler's draws
TRIAL_STREAM = 11  # separates the choice of users from all of these
TEST_STREAM = 12  # users who are tested need not be those who are trained on
FILLER = 0  # RecBole's padding user, which marks an example of weight 0


class _Batches:
    """Batches of indices from number `first` on; its length counts all batches."""

    def __init__(self, batches: Any, first: int) -> None:
        self.batches = batches
        self.first = first

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Iterable[int]]:
        return islice(self.batches, self.first, None)


class SetwiseDataLoader(AbstractDataLoader):
    """Iterates over the training users in an order given by (seed, epoch); yields `SetwiseBatch`es.

    With `train_users`, these are the users with the smallest keys of (seed, user): those of a
    smaller number are among those of a larger one.

    The order and all draws depend only on the epoch set by `set_epoch`, so a resumed run sees the
    same data as an uninterrupted one. All processes see the same batches; each takes its share of
    every batch.
    """

    def __init__(
        self, config: Config, dataset: Dataset, sampler: SetwiseSampler, batch_size: int
    ) -> None:
        """Wrap a sampler.

        Args:
            config: the run's configuration (seed, worker, train_users).
            dataset: the training part.
            sampler: makes the batches.
            batch_size: examples per batch, of all processes together.

        Raises:
            DataError: there is no example to train on.
        """
        trainable = sampler.train_items.counts > 0
        if sampler.n_negatives:  # users who know the whole catalogue have no negatives
            trainable &= sampler.negative_sampler.n_available > 0
        self.users = np.flatnonzero(trainable)
        if not len(self.users):
            raise DataError(
                "no user of the training part can be trained on: no user has both an item and "
                "another item that can be drawn as a negative. Add data, or use "
                "--negative_distribution=uniform, which also draws items without interactions."
            )
        if config["train_users"]:
            n_all, self.users = len(self.users), self._few_users(config)
            log_detail(f"trial: {len(self.users):,} of {n_all:,} users")
        self.sample_size = len(self.users)
        self.examples_per_batch = batch_size
        self.epoch = 0
        self.first_batch = 0
        super().__init__(config, dataset, sampler, shuffle=True)

    def _few_users(self, config: Config) -> np.ndarray:
        keys = random_keys(config["seed"], TRIAL_STREAM, self.users)
        return np.sort(_of_smallest_keys(self.users, keys, config["train_users"]))

    def _init_batch_size_and_step(self) -> None:
        self.step = self.examples_per_batch
        self.set_batch_size(self.examples_per_batch)

    @property
    def setwise_sampler(self) -> SetwiseSampler:
        """The sampler that makes the batches."""
        return self._sampler

    @property
    def _index_sampler(self) -> _Batches:
        # torch's loader reads the batches of indices from this property, with and without workers
        return _Batches(super()._index_sampler, self.first_batch)

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Set the epoch of the next iteration and the batch that it starts from."""
        self.epoch = epoch
        self.first_batch = first_batch
        key = random_keys(self.config["seed"], epoch, SHUFFLE_STREAM)[0]
        self.generator.manual_seed(int(key >> np.uint64(1)))
        sampler = self.setwise_sampler
        sampler.negative_sampler.draw_epoch(
            self.users, sampler.n_negatives, seed=sampler.seed, epoch=epoch
        )

    def collate_fn(self, index: Sequence[int]) -> SetwiseBatch:
        """This process's share of the batch of the users at `index`."""
        users, n_fillers = self._share(index)
        batch = self._sampler.sample(users, self.epoch)
        batch.user_ids[len(users) - n_fillers :] = FILLER
        return batch

    def _share(self, index: Sequence[int]) -> tuple[np.ndarray, int]:
        """This process's users of a batch, and the number of fillers at their end.

        Users are distributed by their number of items: all processes get examples of similar
        length. All processes get equally many, since they exchange gradients in step.
        """
        users, n_processes = self.users[np.asarray(index)], processes.world_size()
        if n_processes == 1:
            return users, 0
        # stable: the same order on all processes
        order = np.argsort(-self._sampler.train_items.counts[users], kind="stable")
        own = users[order][processes.rank() :: n_processes]
        n_fillers = -(-len(users) // n_processes) - len(own)
        return np.append(own, users[order][[-1] * n_fillers]), n_fillers


class _UserBatches(AbstractDataLoader):
    """Mixin of loaders of users: batches of `rank_batch_users` users, which processes share.

    Users are sorted by their number of known items or the length of their conversation, to limit
    padding: the prompts of a batch have similar lengths. Metrics are means over users, so the order
    does not affect them.

    Several processes share the batches through a work queue, because search times vary. The longest
    batches come first, so that no process waits for a long one at the end.

    Attributes:
        uid_list: the users, [n], ordered as ranked.
        uid2items_num: int64 [n_users], held-out items of each user.
    """

    uid_list: Any
    uid2items_num: np.ndarray

    def _init_batch_size_and_step(self) -> None:
        self.step = self.config["rank_batch_users"]
        self.set_batch_size(self.step)

    def _sort_users(self, conversations: Conversations | None) -> torch.Tensor:
        """Sort `uid_list` by the length of the prompts; returns the order."""
        users = [int(user) for user in self.uid_list]
        if conversations is not None:
            sizes = conversations.sizes()[users]
        else:
            known = [len(self._sampler.used_ids[user]) for user in users]
            sizes = np.array(known, dtype=np.int64) - self.uid2items_num[users]
        order = torch.from_numpy(sizes.argsort(kind="stable"))
        self.uid_list = self.uid_list[order]
        return order

    def __iter__(self) -> Iterator[Any]:
        """This process's batches, in RecBole's form."""
        return super().__iter__() if processes.world_size() == 1 else self._from_work_queue()

    def _from_work_queue(self) -> Iterator[Any]:
        users = range(self.sample_size)
        batches = [users[start : start + self.step] for start in users[:: self.step]]
        for number in processes.work_queue(len(batches)):
            yield self.collate_fn(batches[-1 - number])


class RankingDataLoader(_UserBatches, FullSortEvalDataLoader):
    """RecBole's full-ranking loader for a language model."""

    user_df: Interaction

    def __init__(self, config: Config, dataset: ContextDataset, sampler: Any) -> None:
        """Wrap RecBole's loader; the arguments are RecBole's."""
        super().__init__(config, dataset, sampler)
        self.user_df = self.user_df[self._sort_users(dataset.conversations)]


class SampledRankingLoader(_UserBatches, NegSampleEvalDataLoader):
    """RecBole's loader of `uniN` and `popN` for a language model, with draws of our own."""

    def __init__(self, config: Config, dataset: ContextDataset, sampler: Any) -> None:
        """Wrap RecBole's loader; the arguments are RecBole's."""
        super().__init__(config, dataset, KeyedSampler(config, dataset, sampler))
        self._sort_users(dataset.conversations)


class TotalRankingLoader(_UserBatches, TotalCandidatesLoader):
    """The loader of `totalN` for a language model."""

    def __init__(self, config: Config, dataset: ContextDataset, sampler: Any) -> None:
        """Wrap the loader; the arguments are RecBole's."""
        super().__init__(config, dataset, sampler)
        self._sort_users(dataset.conversations)


class ListedRankingLoader(_UserBatches, ListedCandidatesLoader):
    """The loader of `candidate_lists` for a language model."""

    def __init__(self, config: Config, dataset: ContextDataset, sampler: Any) -> None:
        """Wrap the loader; the arguments are RecBole's."""
        super().__init__(config, dataset, sampler)
        self._sort_users(dataset.conversations)


def validated_part(config: Config, part: Dataset) -> Dataset:
    """The rows of `valid_users` users, chosen by the seed; all rows if it is 0 or has no effect."""
    return _with_few_users(
        part, config["valid_users"], lambda users: random_keys(config["seed"], users)
    )


def tested_part(config: Config, part: Dataset) -> Dataset:
    """The rows of `test_users` users, chosen by the seed; all rows if it is 0 or has no effect.

    They are the users with the smallest keys of (seed, token): those of a smaller number are among
    those of a larger one. Inner ids, which differ between models that load different files, would
    give them other users.

    Args:
        config: the run's configuration (seed, test_users), of any model.
        part: the validation or test part; both give the same users if they have the same.
    """

    def keys(users: np.ndarray) -> np.ndarray:
        tokens = part.id2token(part.uid_field, users)
        return random_keys(config["seed"], TEST_STREAM, token_keys(tokens))

    return _with_few_users(part, config["test_users"], keys)


def _with_few_users(
    part: Dataset, n_users: int, keys_of: Callable[[np.ndarray], np.ndarray]
) -> Dataset:
    users = part.inter_feat[part.uid_field]
    distinct = users.unique().numpy()
    if not 0 < n_users < len(distinct):
        return part
    chosen = torch.from_numpy(_of_smallest_keys(distinct, keys_of(distinct), n_users))
    return part.copy(part.inter_feat[torch.isin(users, chosen)])


def _of_smallest_keys(users: np.ndarray, keys: np.ndarray, n_users: int) -> np.ndarray:
    return users[np.argsort(keys, kind="stable")[:n_users]]


def exclude_items(loader: AbstractDataLoader, excluded: UserItems | None) -> None:
    """Exclude items from an evaluation loader's full rankings or sampled candidates, in place."""
    if excluded is None:
        return
    users = loader._dataset.inter_feat[loader._dataset.uid_field].unique().tolist()
    if isinstance(loader, FullSortEvalDataLoader):
        for user in users:
            known = torch.cat(
                [loader.uid2history_item[user], torch.from_numpy(excluded.history(user))]
            )
            loader.uid2history_item[user] = known.unique()
        return
    if loader._sampler is not None:  # rows with labels need no candidates
        for user in users:
            loader._sampler.used_ids[user].update(excluded.history(user).tolist())


def never_ranked(
    config: Config, dataset: CountedDataset, phase: Literal["valid", "test"]
) -> UserItems | None:
    """Items that are no candidates of their users, besides the training items; None for none.

    With `seen_items: rated`, items rated below `val_interval`: the training part of these ratings,
    and at test the validation part too if `test_information` lets systems know it.

    Args:
        config: the run's configuration.
        dataset: the whole data set; after its split if low ratings are left out.
        phase: the ranking.
    """
    excluded = dataset.excluded if isinstance(dataset, ContextDataset) else None
    if config["seen_items"] != "rated":
        return excluded
    knows_validation = phase == "test" and config["test_information"] != "train"
    low = dataset.low_rated_items((0, 1) if knows_validation else (0,))
    return low if excluded is None else excluded.union(low)


def evaluation_loaders(
    config: Config, dataset: ContextDataset, parts: Sequence[ContextDataset]
) -> tuple[AbstractDataLoader, AbstractDataLoader, AbstractDataLoader]:
    """Loaders for validation during training, for the reported validation, and for test.

    The first ranks a subset of `valid_users` users, the others one of `test_users`. The first is
    the second loader if neither limits the users.
    """
    _, valid_sampler, test_sampler = create_samplers(config, dataset, parts)
    modes = config["eval_args"]["mode"]

    def loader(phase: Literal["valid", "test"], part: Dataset, sampler: Any) -> AbstractDataLoader:
        kind: type[_UserBatches] = RankingDataLoader
        if phase == "test" and config["candidate_lists"] is not None:
            kind = ListedRankingLoader
        elif modes[phase] != "full":
            per_positive = is_drawn_per_positive(modes[phase])
            kind = SampledRankingLoader if per_positive else TotalRankingLoader
        made = kind(config, part, sampler)
        exclude_items(made, never_ranked(config, dataset, phase))
        return made

    few, reported = validated_part(config, parts[1]), tested_part(config, parts[1])
    valid = loader("valid", reported, valid_sampler)
    test = loader("test", tested_part(config, parts[2]), test_sampler)
    return valid if few is reported else loader("valid", few, valid_sampler), valid, test
