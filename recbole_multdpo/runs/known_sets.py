"""Recognition of published test sets: a user's test items against stored fingerprints.

Two ways, as the same set circulates under several ids:

- by the ids of the data files, with a hash of all pairs of user and test item, and a sample of
  users with two bytes for the test items of each;
- by the graph of users and items, whatever their ids are. Each user and item gets a colour, first
  its number of interactions, then, four times, a hash of its own and of its neighbours' colours.
  Equal colours of all users and items mean the same interactions, but for astronomically rare
  graphs; a user's test items are then compared by their colours.

Fingerprints are in `properties/test_sets`: some 25 kB each, hashes only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from recbole.data.dataset import Dataset

from recbole_multdpo.runs.fingerprints import pairs_fingerprint
from recbole_multdpo.settings.layers import properties_folder

RESULT_KEY = "known_test_sets"
SAMPLE = 2048  # users; a share of half of them is known to 1.1 points (standard error)
ROUNDS = 4
# Ids that agree by accident, such as 1, 2, 3, ... in two data sets, give hardly any equal test
# item: with fewer than these the sets have nothing to do with each other.
FEWEST_USERS, SMALLEST_SHARE = 50, 0.05
SUFFIX = ".npz"


@dataclass(frozen=True)
class Fingerprint:
    """The test items of a data set, as hashes.

    Attributes:
        n_users, n_items, n_rows: users and items with interactions, and interactions, of all parts.
        n_tested: users with test items.
        ids: hash of the pairs of user and test item, by the ids of the data files.
        graph: hash of the colours of all users and items.
        graph_tests: hash of the colours of users and of their test items.
        id_users, graph_users: uint32 [n], the sampled users, ascending.
        id_tests, graph_tests_of: uint16 [n], the test items of each.
    """

    n_users: int
    n_items: int
    n_rows: int
    n_tested: int
    ids: str
    graph: str
    graph_tests: str
    id_users: np.ndarray
    id_tests: np.ndarray
    graph_users: np.ndarray
    graph_tests_of: np.ndarray

    def save(self, file: Path) -> None:
        """Write it as a compressed file of arrays."""
        arrays: dict[str, Any] = {key: np.asarray(value) for key, value in asdict(self).items()}
        np.savez_compressed(file, **arrays)

    @classmethod
    def read(cls, file: Path) -> Fingerprint:
        """Read what `save` wrote."""
        with np.load(file, allow_pickle=False) as saved:
            values = {each.name: saved[each.name] for each in fields(cls)}
        return cls(**{k: v.item() if v.ndim == 0 else v for k, v in values.items()})


@dataclass(frozen=True)
class Match:
    """A published test set that the test items of a run have to do with.

    Attributes:
        name: of its files in `properties/test_sets`.
        equal: True if all users and test items are the same.
        by: `ids` or `graph`.
        n_compared: users of the sample that are tested in both.
        n_same: those with the same test items.
    """

    name: str
    equal: bool
    by: str
    n_compared: int
    n_same: int


def known_names() -> list[str]:
    """Names of the known test sets."""
    return sorted(file.stem for file in _folder().glob(f"*{SUFFIX}"))


def known_text(name: str) -> Path:
    """File of a known test set for readers: its title and published figures."""
    return _folder() / f"{name}.yaml"


@cache
def known(name: str) -> Fingerprint:
    """Fingerprint of a known test set."""
    return Fingerprint.read(_folder() / f"{name}{SUFFIX}")


def _folder() -> Path:
    return properties_folder() / "test_sets"


def recognised(parts: Sequence[Dataset], tested: Dataset) -> dict[str, list[dict[str, Any]]]:
    """Entry of `result.json`: the known test sets that a run's test items have to do with; logged.

    Args:
        parts: training, validation and test part of the whole data.
        tested: the rows that are tested, `parts[2]` or those of some users.
    """
    matches = list(matching(fingerprint(parts, tested)))
    for match in matches:
        share = "equal to" if match.equal else f"{match.n_same} of {match.n_compared} users as in"
        getLogger().info(f"test items: {share} {match.name} (by {match.by})")
    return {RESULT_KEY: [asdict(match) for match in matches]}


def matches_of(result: Mapping[str, Any]) -> list[Match]:
    """The known test sets of a finished run.

    Of a run of an earlier version only the hash of its test items is known.

    Args:
        result: its `result.json`.

    Raises:
        ValueError: the entry is damaged.
    """
    if RESULT_KEY in result:
        return TypeAdapter(list[Match]).validate_python(result[RESULT_KEY])
    ids = result.get("test_set")
    return [Match(name, True, "ids", 0, 0) for name in known_names() if known(name).ids == ids]


def matching(found: Fingerprint) -> Iterator[Match]:
    """Compare a fingerprint with all known ones."""
    for name in known_names():
        if match := compare(name, known(name), found):
            yield match


def compare(name: str, one: Fingerprint, found: Fingerprint) -> Match | None:
    """Compare a fingerprint with a known one; None if they have nothing to do with each other."""
    n_compared, n_same = _agreement(one.id_users, one.id_tests, found.id_users, found.id_tests)
    if one.ids == found.ids:
        return Match(name, True, "ids", n_compared, n_same)
    related = n_compared >= min(FEWEST_USERS, len(one.id_users))
    if related and n_same >= SMALLEST_SHARE * n_compared:
        return Match(name, False, "ids", n_compared, n_same)
    if one.graph != found.graph:
        return None
    n_compared, n_same = _agreement(
        one.graph_users, one.graph_tests_of, found.graph_users, found.graph_tests_of
    )
    return Match(name, one.graph_tests == found.graph_tests, "graph", n_compared, n_same)


def _agreement(
    users: np.ndarray, tests: np.ndarray, other_users: np.ndarray, other_tests: np.ndarray
) -> tuple[int, int]:
    """Number of users in both samples, and of those with the same test items.

    A sample holds the users with the smallest hashes, so that two samples of the same users are
    the same sample.
    """
    _, one, other = np.intersect1d(users, other_users, assume_unique=True, return_indices=True)
    return len(one), int((tests[one] == other_tests[other]).sum())


def fingerprint(parts: Sequence[Dataset], tested: Dataset) -> Fingerprint:
    """Fingerprint of test items.

    Args:
        parts: training, validation and test part of the whole data.
        tested: the rows that are tested.
    """
    pairs = [
        np.stack([part.inter_feat[f].numpy() for f in (part.uid_field, part.iid_field)])
        for part in (*parts, tested)
    ]
    every = np.unique(np.concatenate(pairs[:-1], axis=1), axis=1)
    users, items = np.unique(pairs[-1], axis=1)  # sorted by user
    starts = np.flatnonzero(np.r_[True, users[1:] != users[:-1]])
    names = [
        np.array([_hash(str(token)) for token in tested.id2token(field, ids)], dtype=np.uint64)
        for field, ids in ((tested.uid_field, users[starts]), (tested.iid_field, items))
    ]
    of_users, of_items = colours(every[0], every[1])
    by_graph = of_users[users[starts]], np.add.reduceat(mixed(of_items[items]), starts)
    id_users, id_tests = _sample(names[0], np.add.reduceat(mixed(names[1]), starts))
    graph_users, graph_tests_of = _sample(*by_graph)
    in_order = np.lexsort(by_graph[::-1])
    return Fingerprint(
        n_users=len(np.unique(every[0])),
        n_items=len(np.unique(every[1])),
        n_rows=every.shape[1],
        n_tested=len(starts),
        ids=pairs_fingerprint(tested),
        graph=_digest(*(np.sort(values[values > 0]) for values in (of_users, of_items))),
        graph_tests=_digest(*(values[in_order] for values in by_graph)),
        id_users=id_users,
        id_tests=id_tests,
        graph_users=graph_users,
        graph_tests_of=graph_tests_of,
    )


def colours(users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours of users and items that do not depend on their numbers.

    Args:
        users: int [n], the user of every distinct interaction.
        items: int [n], its item.

    Returns:
        uint64 [largest user + 1] and [largest item + 1]; 0 for a number without an interaction.
    """
    degrees = [np.bincount(numbers).astype(np.uint64) for numbers in (users, items)]
    of_users, of_items = mixed(degrees[0]), mixed(mixed(degrees[1]))  # users and items differ
    for _ in range(ROUNDS):
        around_users, around_items = np.zeros_like(of_users), np.zeros_like(of_items)
        np.add.at(around_users, users, mixed(of_items[items]))
        np.add.at(around_items, items, mixed(of_users[users]))
        of_users, of_items = mixed(of_users + around_users), mixed(of_items + around_items)
    return of_users * (degrees[0] > 0), of_items * (degrees[1] > 0)


def mixed(values: np.ndarray) -> np.ndarray:
    """Hash of 64-bit numbers: the finisher of splitmix64 (Steele et al. 2014), uint64."""
    mixing = values + np.uint64(0x9E3779B97F4A7C15)
    mixing = (mixing ^ (mixing >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixing = (mixing ^ (mixing >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixing ^ (mixing >> np.uint64(31))


def _sample(users: np.ndarray, tests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The users with the smallest hashes, uint32 [n], and hashes of their test items, uint16 [n].

    Users that cannot be told apart are left out.
    """
    short = (users >> np.uint64(32)).astype(np.uint32)
    distinct, first, counts = np.unique(short, return_index=True, return_counts=True)
    single = np.flatnonzero(counts == 1)[:SAMPLE]
    return distinct[single], mixed(tests[first[single]]).astype(np.uint16)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for values in arrays:
        digest.update(values.astype("<u8").tobytes() + b"|")
    return digest.hexdigest()[:16]
