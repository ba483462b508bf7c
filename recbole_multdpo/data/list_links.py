"""Detection of lists that are pieces of one person's list: sliding windows or growing prefixes.

Files for language models often have one row per item that a person chose: the history and the item.
Treated as separate users, such rows leak the answer of one into the history of the next. Two lists
are *linked* if they fit together exactly: the end of one is the beginning of the other, or one
contains the other. Two readers of one series share its volumes too, so the number of items that
linked lists must share is estimated from the data:

- A shared run that ends inside both lists proves that they are not pieces of one list. Runs at
  random positions would fit in a known share of cases, so the number of misfits gives the number
  of fits by chance (`LinkLevel.expected`). The shortest run is used at which chance explains at
  most `MAX_CHANCE` of the fits, and would produce as many with a probability of at most `RARELY`.
- A run that also occurs where it does not fit, such as a popular series, links no lists.

Runs are compared by hashes; time and memory are linear in the number of items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import pdtrc

from recbole_multdpo.data.spans import unfold_spans

MAX_CHANCE = 0.1  # share of the links of the shortest run
RARELY = 0.001  # probability
LONGEST_RUN = 12  # longer shared runs count as runs of this length
_REFERENCES = 3  # occurrences of a run that all other occurrences are compared with
_LINKS_PER_ITEM = 4  # pieces of single lists have at most so many links of one length

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LinkLevel:
    """Number of list pairs that fit together by a run of a given length.

    Attributes:
        overlap: shared items; `LONGEST_RUN` includes longer runs.
        links: pairs that fit.
        expected: pairs expected to fit by chance.
    """

    overlap: int
    links: int
    expected: float

    @property
    def is_trusted(self) -> bool:
        """True if chance does not explain the links."""
        return (
            0 < self.expected <= MAX_CHANCE * self.links
            and pdtrc(self.links - 1, self.expected) <= RARELY
        )


@dataclass(frozen=True)
class Links:
    """Pairs of lists that are pieces of one list.

    Attributes:
        min_overlap: least number of items that linked lists share; None if no number separates
            pieces of one list from chance.
        first: list indices, int64 [n_links].
        second: index of the list linked to each; it begins inside the first one.
        offset: position in the first list at which the second begins.
        overlap: number of shared items.
        levels: counts for each run length, the shortest first.
    """

    min_overlap: int | None
    first: Ints
    second: Ints
    offset: Ints
    overlap: Ints
    levels: list[LinkLevel]


def find_links(
    lists: Sequence[Sequence[int] | Ints], min_overlap: int | None = None, shortest: int = 2
) -> Links:
    """Find lists that are pieces of one list.

    Args:
        lists: item numbers from 0, in order of time.
        min_overlap: least number of items that linked lists share; None: estimated from the data.
        shortest: lower limit of the estimate, up to `LONGEST_RUN`.

    Returns:
        The links. Equal lists are linked to the first of them.
    """
    runs = _Runs(lists)
    if min_overlap is not None:
        shortest = min(min_overlap, LONGEST_RUN)
    lengths = range(shortest, LONGEST_RUN + 1)
    fits, levels, expected = {}, [], np.inf
    for length in lengths:
        fits[length], chance, n_misfits = runs.fits(length)
        # without misfits, assume that one more shared item is at most half as likely
        expected = chance if n_misfits else min(chance, expected / 2)
        levels.append(LinkLevel(length, len(fits[length]), expected))
    if min_overlap is None:
        min_overlap = next((level.overlap for level in levels if level.is_trusted), None)
    found = [np.empty((0, 4), np.int64)]
    if min_overlap is not None:
        found += [runs.equal_lists(), *fits.values()]
    links = np.concatenate(found)
    links = links[links[:, 3] >= (min_overlap or 0)]
    first, second, offset, overlap = links.T
    return Links(min_overlap, first, second, offset, overlap, levels)


class _Runs:
    """Runs of items inside lists; equal lists count once."""

    def __init__(self, lists: Sequence[Sequence[int] | Ints]) -> None:
        """Compute prefix hashes, from which the hash of any run takes two look-ups."""
        sizes = np.fromiter(map(len, lists), np.int64, len(lists))
        items = np.concatenate([np.empty(0, np.int64), *(np.asarray(x, np.int64) for x in lists)])
        rng = np.random.default_rng(0)
        top = np.iinfo(np.uint64).max
        values = rng.integers(0, top, items.max(initial=0) + 1, np.uint64, endpoint=True)[items]
        base = int(rng.integers(0, top, dtype=np.uint64)) | 1  # odd numbers are invertible
        powers = _powers(base, len(items) + 1)
        self._inverse_powers = _powers(pow(base, -1, 2**64), len(items) + 1)
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * powers[:-1])])
        ends = np.cumsum(sizes)
        whole = self._hashes(ends - sizes, sizes)
        _, first, group = np.unique(whole, return_index=True, return_inverse=True)
        self._all_sizes, self._first_equal = sizes, first[group]
        self._numbers = np.sort(first[sizes[first] > 0])
        self._sizes, self._starts = sizes[self._numbers], (ends - sizes)[self._numbers]

    def equal_lists(self) -> Ints:
        """Links of lists to the first list that equals them, int64 [n, 4]."""
        second = np.flatnonzero(self._first_equal != np.arange(len(self._first_equal)))
        columns = self._first_equal[second], second, 0 * second, self._all_sizes[second]
        return np.stack(columns, axis=1)

    def fits(self, length: int) -> tuple[Ints, float, int]:
        """Pairs of lists that fit by `length` items (`LONGEST_RUN`: or more).

        Returns:
            Links int64 [n, 4] with columns first list, second list, offset and overlap; the number
            expected by chance; the number of misfits. With more than a few links per item the links
            are not enumerated: empty, and infinity is expected.
        """
        places, lists, hashes = self._sorted_runs(length)
        chance, n_misfits = self._chance(length, places, lists, hashes)
        second = np.flatnonzero(self._sizes >= length)
        wanted = self._hashes(self._starts[second], np.full(len(second), length))
        low = np.searchsorted(hashes, wanted, "left")
        n_found = np.searchsorted(hashes, wanted, "right") - low
        if n_found.sum() > _LINKS_PER_ITEM * len(self._sums):
            return np.empty((0, 4), np.int64), np.inf, n_misfits
        row, at = unfold_spans(low, n_found)
        group, second = low[row], second[row]
        first, offset = lists[at], places[at] - self._starts[lists[at]]
        overlap = np.minimum(self._sizes[first] - offset, self._sizes[second])
        # two lists with the same beginning are found twice: keep the longer one as the first
        kept = (first != second) & ((offset > 0) | (self._sizes[first] > self._sizes[second]))
        kept &= (overlap == length) | ((overlap > length) & (length == LONGEST_RUN))
        kept &= self._fit(places[at], first, self._starts[second], second)
        popular = self._misfit_somewhere(np.unique(group[kept]), places, lists, hashes)
        kept &= ~np.isin(group, popular)
        numbers = self._numbers
        columns = numbers[first], numbers[second], offset, overlap
        return np.stack([column[kept] for column in columns], axis=1), chance, n_misfits

    def _sorted_runs(self, length: int) -> tuple[Ints, Ints, NDArray[np.uint64]]:
        """Position, list and hash of every run of this length, sorted by hash, then position."""
        n_runs = np.maximum(self._sizes - length + 1, 0)
        lists, places = unfold_spans(self._starts, n_runs)
        hashes = self._hashes(places, np.full(len(places), length))
        order = np.argsort(hashes, kind="stable")
        return places[order], lists[order], hashes[order]

    def _fit(self, place_a: Ints, list_a: Ints, place_b: Ints, list_b: Ints) -> NDArray[np.bool_]:
        """bool [n], True if two lists, aligned at two positions, agree in their overlap."""
        ends = self._starts + self._sizes
        before = np.minimum(place_a - self._starts[list_a], place_b - self._starts[list_b])
        size = before + np.minimum(ends[list_a] - place_a, ends[list_b] - place_b)
        return self._hashes(place_a - before, size) == self._hashes(place_b - before, size)

    def _misfit_somewhere(
        self, groups: Ints, places: Ints, lists: Ints, hashes: NDArray[np.uint64]
    ) -> Ints:
        """The groups of equal runs, given by their first index in the order, that have a misfit."""
        sizes = np.searchsorted(hashes, hashes[groups], "right") - groups
        group, at = unfold_spans(groups, sizes)
        misfits = np.zeros(len(groups), bool)
        for reference in range(_REFERENCES):
            other = (groups + np.minimum(reference, sizes - 1))[group]
            fit = self._fit(places[at], lists[at], places[other], lists[other])
            misfits[group[~fit & (lists[at] != lists[other])]] = True
        return groups[misfits]

    def _chance(
        self, length: int, places: Ints, lists: Ints, hashes: NDArray[np.uint64]
    ) -> tuple[float, int]:
        """Number of fits of this length expected by chance, and number of misfits.

        Runs shared by two lists at positions that do not fit give the probability that lists of
        different people share a run at two given positions. One is added to the count, since zero
        misfits do not prove a probability of zero.
        """
        change = np.flatnonzero(np.diff(hashes)) + 1
        begin = np.concatenate([[0], change])
        sizes = np.diff(np.concatenate([begin, [len(hashes)]]))
        one = begin[sizes == 2]
        other = one + 1
        fit = self._fit(places[one], lists[one], places[other], lists[other])
        n_misfits = int((~fit & (lists[one] != lists[other])).sum())
        size, count = np.unique(self._sizes[self._sizes >= length], return_counts=True)
        n_pairs = np.outer(count, count)  # counts every pair twice, which cancels out
        n_places = np.outer(size - length + 1, size - length + 1)
        inside = np.minimum(size[:, None], size) == length
        n_fits = np.where(inside, np.abs(size[:, None] - size) + 1, 2)
        n_misfit_places = (n_pairs * (n_places - n_fits)).sum()
        if not n_misfit_places:
            return np.inf, n_misfits
        return float((n_misfits + 1) * (n_pairs * n_fits).sum() / n_misfit_places), n_misfits

    def _hashes(self, places: Ints, sizes: Ints) -> NDArray[np.uint64]:
        sums = self._sums[places + sizes] - self._sums[places]
        return sums * self._inverse_powers[places]


def _powers(base: int, n: int) -> NDArray[np.uint64]:
    """`base` to the powers 0 to n - 1, modulo 2**64."""
    factors = np.full(n, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)
