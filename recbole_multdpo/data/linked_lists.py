"""Lists that are pieces of one person's list: windows that slide along it, or its growing prefixes.

Files for language models often hold one row for each thing that a person chose: what came before,
and the thing itself. Taken for persons of their own, such rows put the answer of one into the
history of the next. Two lists are *linked* where they fit together exactly: the end of one is the
beginning of the other, or one stands inside of the other. How many items they must share for that
is found out from the data, as two readers of one series share its volumes too:

- A shared run that ends inside of both lists proves that they are not pieces of one list. Runs at
  random places would fit together in a known share of cases, so the number of misfits tells how
  many fits are chance (`LinkLevel.expected`). The shortest run is taken at which chance makes up
  at most `MAX_CHANCE` of the fits, and would hardly ever (`RARELY`) make as many.
- A run that also stands where it does not fit, a popular series, links nobody.

Runs are compared by hashes: time and memory grow with the number of items in the lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import pdtrc

MAX_CHANCE = 0.1  # of the links of the shortest run
RARELY = 0.001  # probability
LONGEST_RUN = 12  # longer shared runs count as this
_REFERENCES = 3  # occurrences of a run that all its others are held against
_LINKS_PER_ITEM = 4  # pieces of single lists have no more of one length

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LinkLevel:
    """Pairs of lists that fit together by a run of a certain length.

    Attributes:
        overlap: shared items; `LONGEST_RUN` stands for longer runs too.
        links: pairs that fit.
        expected: how many of them would fit by chance.
    """

    overlap: int
    links: int
    expected: float

    @property
    def is_trusted(self) -> bool:
        """Whether chance does not explain the links."""
        return (
            0 < self.expected <= MAX_CHANCE * self.links
            and pdtrc(self.links - 1, self.expected) <= RARELY
        )


@dataclass(frozen=True)
class Links:
    """Which lists are pieces of one.

    Attributes:
        min_overlap: items that linked lists share at least; None if no number tells pieces of one
            list from chance.
        first: numbers of lists, `(n_links,)`.
        second: the lists linked to them; each begins inside of its first one.
        offset: places in the first list before the second begins.
        overlap: items that both share.
        levels: what was found at each length of a run, the shortest first.
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
        min_overlap: items that linked lists share at least; by default found out from the data.
        shortest: the least number that may be found out, up to `LONGEST_RUN`.

    Returns:
        The links. Of equal lists, each is linked to the first of them.
    """
    runs = _Runs(lists)
    if min_overlap is not None:
        shortest = min(min_overlap, LONGEST_RUN)
    lengths = range(shortest, LONGEST_RUN + 1)
    fits, levels, expected = {}, [], np.inf
    for length in lengths:
        fits[length], chance, n_misfits = runs.fits(length)
        # where strangers share no run, one title more is at most half as likely
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
    """Runs of items inside of lists; of equal lists the first one only."""

    def __init__(self, lists: Sequence[Sequence[int] | Ints]) -> None:
        """Hash the lists so that the hash of any run is two look-ups."""
        sizes = np.fromiter(map(len, lists), np.int64, len(lists))
        items = np.concatenate([np.empty(0, np.int64), *(np.asarray(x, np.int64) for x in lists)])
        rng = np.random.default_rng(0)
        top = np.iinfo(np.uint64).max
        values = rng.integers(0, top, items.max(initial=0) + 1, np.uint64, endpoint=True)[items]
        base = int(rng.integers(0, top, dtype=np.uint64)) | 1  # odd numbers have an inverse
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
        """Links of lists to the first list that equals them, `(n, 4)`."""
        second = np.flatnonzero(self._first_equal != np.arange(len(self._first_equal)))
        columns = self._first_equal[second], second, 0 * second, self._all_sizes[second]
        return np.stack(columns, axis=1)

    def fits(self, length: int) -> tuple[Ints, float, int]:
        """Pairs of lists that fit by this many items (`LONGEST_RUN`: or by more).

        Returns:
            Links: first and second list, offset, overlap, `(n, 4)`; how many are expected by
            chance; and the misfits that say so. More than a few links per item are not enumerated:
            none, infinitely many are expected.
        """
        places, lists, hashes = self._sorted_runs(length)
        chance, n_misfits = self._chance(length, places, lists, hashes)
        second = np.flatnonzero(self._sizes >= length)
        wanted = self._hashes(self._starts[second], np.full(len(second), length))
        low = np.searchsorted(hashes, wanted, "left")
        n_found = np.searchsorted(hashes, wanted, "right") - low
        if n_found.sum() > _LINKS_PER_ITEM * len(self._sums):
            return np.empty((0, 4), np.int64), np.inf, n_misfits
        at = _ranges(low, n_found)
        group, second = np.repeat(low, n_found), np.repeat(second, n_found)
        first, offset = lists[at], places[at] - self._starts[lists[at]]
        overlap = np.minimum(self._sizes[first] - offset, self._sizes[second])
        # two lists with the same beginning are found twice: the longer one is the first
        kept = (first != second) & ((offset > 0) | (self._sizes[first] > self._sizes[second]))
        kept &= (overlap == length) | ((overlap > length) & (length == LONGEST_RUN))
        kept &= self._fit(places[at], first, self._starts[second], second)
        popular = self._misfit_somewhere(np.unique(group[kept]), places, lists, hashes)
        kept &= ~np.isin(group, popular)
        numbers = self._numbers
        columns = numbers[first], numbers[second], offset, overlap
        return np.stack([column[kept] for column in columns], axis=1), chance, n_misfits

    def _sorted_runs(self, length: int) -> tuple[Ints, Ints, NDArray[np.uint64]]:
        """Place, list and hash of every run of this length, sorted by hash, then by place."""
        n_runs = np.maximum(self._sizes - length + 1, 0)
        places = _ranges(self._starts, n_runs)
        lists = np.repeat(np.arange(len(n_runs)), n_runs)
        hashes = self._hashes(places, np.full(len(places), length))
        order = np.argsort(hashes, kind="stable")
        return places[order], lists[order], hashes[order]

    def _fit(self, place_a: Ints, list_a: Ints, place_b: Ints, list_b: Ints) -> NDArray[np.bool_]:
        """Whether two lists agree wherever they overlap, laid so that two places coincide."""
        ends = self._starts + self._sizes
        before = np.minimum(place_a - self._starts[list_a], place_b - self._starts[list_b])
        size = before + np.minimum(ends[list_a] - place_a, ends[list_b] - place_b)
        return self._hashes(place_a - before, size) == self._hashes(place_b - before, size)

    def _misfit_somewhere(
        self, groups: Ints, places: Ints, lists: Ints, hashes: NDArray[np.uint64]
    ) -> Ints:
        """Those groups of equal runs, given by their first place in the order, with a misfit."""
        sizes = np.searchsorted(hashes, hashes[groups], "right") - groups
        at, group = _ranges(groups, sizes), np.repeat(np.arange(len(groups)), sizes)
        misfits = np.zeros(len(groups), bool)
        for reference in range(_REFERENCES):
            other = (groups + np.minimum(reference, sizes - 1))[group]
            fit = self._fit(places[at], lists[at], places[other], lists[other])
            misfits[group[~fit & (lists[at] != lists[other])]] = True
        return groups[misfits]

    def _chance(
        self, length: int, places: Ints, lists: Ints, hashes: NDArray[np.uint64]
    ) -> tuple[float, int]:
        """How many pairs of strangers' lists are expected to fit by a run of this length.

        Runs that stand in two lists, at places that do not fit, say how often strangers share a run
        at two given places. One more than were found is taken: none found proves nothing.
        """
        change = np.flatnonzero(np.diff(hashes)) + 1
        begin = np.concatenate([[0], change])
        sizes = np.diff(np.concatenate([begin, [len(hashes)]]))
        one = begin[sizes == 2]
        other = one + 1
        fit = self._fit(places[one], lists[one], places[other], lists[other])
        n_misfits = int((~fit & (lists[one] != lists[other])).sum())
        size, count = np.unique(self._sizes[self._sizes >= length], return_counts=True)
        n_pairs = np.outer(count, count)  # every pair twice, which cancels out
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
    """`base` to the powers of 0 to n - 1, modulo 2**64."""
    factors = np.full(n, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


def _ranges(starts: Ints, sizes: Ints) -> Ints:
    """start, start + 1, ..., start + size - 1 of each, one after the other."""
    before = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum()) + np.repeat(starts - before, sizes)
