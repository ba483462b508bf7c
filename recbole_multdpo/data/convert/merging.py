"""One list per reader from rows that are pieces of it (`list_links`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from recbole_multdpo.data.list_links import Links, find_links

Lists = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Readers:
    """Rows laid side by side to one list per reader.

    Attributes:
        lists: item numbers of every reader, in order of time.
        rows: numbers of every reader's rows, sorted.
        places: of every row, where its items are in its reader's list.
        contradicting: rows that are nobody's: they share what links them with another reader's
            list, but do not agree with it further on.
        links: rows, or what a key had made one list of, that overlap.
    """

    lists: list[list[int]]
    rows: list[list[int]]
    places: list[list[int]]
    contradicting: list[int]
    links: Links


def merge_rows(rows: Lists, keys: Sequence[Hashable], min_overlap: int | None = None) -> Readers:
    """One list per reader, in the order of their first rows.

    Args:
        rows: item numbers from 0, in order of time.
        keys: of each row; rows of one key have one reader. None is no key.
        min_overlap: items that rows of one reader share at least; by default found out from the
            data (`find_links`).

    Returns:
        The readers. Rows of one key that do not overlap are joined in their order, each title once.
        Where two lists contradict each other, the one made of fewer rows is left out, of equal ones
        the later.
    """
    lists, members, places = _joined_by_key(rows, keys)
    links = find_links(lists, min_overlap)
    laid = _lay_side_by_side(lists, links)
    opposed: dict[int, set[int]] = defaultdict(set)
    for one, other in laid.conflicts:
        opposed[one].add(other)
        opposed[other].add(one)
    rows_of = {one: [row for part in parts for row in members[part]] for one, parts in laid.members}
    kept: set[int] = set()
    for one in sorted(rows_of, key=lambda one: (-len(rows_of[one]), min(rows_of[one]))):
        if not opposed[one] & kept:
            kept.add(one)
    order = sorted(kept, key=lambda one: min(rows_of[one]))
    for part, begin in enumerate(laid.begins):
        for row in members[part]:
            places[row] = [begin + place for place in places[row]]
    return Readers(
        lists=[laid.lists[one] for one in order],
        rows=[sorted(rows_of[one]) for one in order],
        places=places,
        contradicting=sorted(row for one in rows_of.keys() - kept for row in rows_of[one]),
        links=links,
    )


@dataclass(frozen=True)
class _Laid:
    """Lists laid side by side; those that were laid together have the number of one of them.

    Attributes:
        lists: by number, what came of them.
        members: number, and the lists that were laid together.
        begins: of every list, where it begins in what came of it.
        conflicts: numbers of lists that are linked but disagree.
    """

    lists: dict[int, list[int]]
    members: list[tuple[int, list[int]]]
    begins: list[int]
    conflicts: list[tuple[int, int]]


def _lay_side_by_side(lists: Lists, links: Links) -> _Laid:
    """Follow the links, the longest overlaps first."""
    laid = {number: list(items) for number, items in enumerate(lists)}
    members = {number: [number] for number in laid}
    of, begins = list(laid), [0] * len(laid)
    conflicts: list[tuple[int, int]] = []
    for at in np.lexsort([links.second, links.first, -links.overlap]).tolist():
        first, second = int(links.first[at]), int(links.second[at])
        kept, joined = of[first], of[second]
        if kept == joined:
            continue
        # where what came of the second begins in what came of the first
        shift = begins[first] + int(links.offset[at]) - begins[second]
        if len(members[kept]) < len(members[joined]):
            kept, joined, shift = joined, kept, -shift
        merged = _join(laid[kept], laid[joined], shift)
        if merged is None:
            conflicts.append((first, second))
            continue
        for number in members[kept]:
            begins[number] += max(-shift, 0)
        for number in members[joined]:
            begins[number] += max(shift, 0)
            of[number] = kept
        laid[kept] = merged
        members[kept] += members.pop(joined)
        del laid[joined]
    still = [(of[first], of[second]) for first, second in conflicts if of[first] != of[second]]
    return _Laid(laid, list(members.items()), begins, still)


def _join(first: list[int], second: list[int], shift: int) -> list[int] | None:
    """Two lists as one, the second beginning `shift` behind the first; None: they disagree."""
    if shift < 0:
        first, second, shift = second, first, -shift
    overlap = min(len(first) - shift, len(second))
    if first[shift : shift + overlap] != second[:overlap]:
        return None
    return first + second[overlap:]


def _joined_by_key(
    rows: Lists, keys: Sequence[Hashable]
) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """One list per key, its rows, and of every row the places of its items in the list."""
    owners = [("row", row) if key is None else ("key", key) for row, key in enumerate(keys)]
    # items of different keys are different ones, so that one shared title is enough for a link
    numbers: dict[tuple[Hashable, int], int] = {}
    items = [
        [numbers.setdefault((owner, item), len(numbers)) for item in row]
        for owner, row in zip(owners, rows, strict=True)
    ]
    laid = _lay_side_by_side(items, find_links(items, min_overlap=1))
    lists: dict[Hashable, list[int]] = {}
    members: dict[Hashable, list[int]] = {}
    places: list[list[int]] = [[] for _ in rows]
    for number, its_rows in sorted(laid.members, key=lambda member: min(member[1])):
        piece, owner = laid.lists[number], owners[its_rows[0]]
        if owner not in lists:
            lists[owner], members[owner], at = list(piece), [], list(range(len(piece)))
        else:
            known = {item: place for place, item in reversed(list(enumerate(lists[owner])))}
            new = [item for item in dict.fromkeys(piece) if item not in known]
            known |= {item: len(lists[owner]) + place for place, item in enumerate(new)}
            lists[owner] += new
            at = [known[item] for item in piece]
        members[owner] += its_rows
        for row in its_rows:
            begin = laid.begins[row]
            places[row] = at[begin : begin + len(rows[row])]
    original = [item for _, item in numbers]  # numbers were given in this order
    return (
        [[original[number] for number in one] for one in lists.values()],
        list(members.values()),
        places,
    )
