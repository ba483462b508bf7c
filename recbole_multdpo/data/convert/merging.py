"""Merging of rows that are pieces of one person's list (`list_links`).

A reader is the person whose titles a row lists; several rows may belong to one reader.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from recbole_multdpo.data.list_links import Links, find_links

Lists = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Readers:
    """Rows merged into one list per reader.

    Attributes:
        lists: item numbers of each reader, in order of time.
        rows: row numbers of each reader, sorted.
        places: for each row, the positions of its items in its reader's list.
        contradicting: rows without a reader: they are linked to another reader's list, but disagree
            with it further on.
        links: links between rows, or between the merged rows of a key.
    """

    lists: list[list[int]]
    rows: list[list[int]]
    places: list[list[int]]
    contradicting: list[int]
    links: Links


def merge_rows(rows: Lists, keys: Sequence[Hashable], min_overlap: int | None = None) -> Readers:
    """Merge rows into one list per reader.

    Args:
        rows: item numbers from 0, in order of time.
        keys: reader key of each row; rows with the same key have the same reader. None: no key.
        min_overlap: least number of items shared by linked rows; None: estimated from the data
            (`find_links`).

    Returns:
        The readers, in the order of their first rows. Rows of one key that do not overlap are
        concatenated in their order, without repeated titles. If two lists contradict each other,
        the one with fewer rows, or else the later one, is left out.
    """
    lists, members, places = _joined_by_key(rows, keys)
    links = find_links(lists, min_overlap)
    merged = _merge_linked(lists, links)
    opposed: dict[int, set[int]] = defaultdict(set)
    for one, other in merged.conflicts:
        opposed[one].add(other)
        opposed[other].add(one)
    rows_of = {
        one: [row for part in parts for row in members[part]] for one, parts in merged.members
    }
    kept: set[int] = set()
    for one in sorted(rows_of, key=lambda one: (-len(rows_of[one]), min(rows_of[one]))):
        if not opposed[one] & kept:
            kept.add(one)
    order = sorted(kept, key=lambda one: min(rows_of[one]))
    for part, begin in enumerate(merged.begins):
        for row in members[part]:
            places[row] = [begin + place for place in places[row]]
    return Readers(
        lists=[merged.lists[one] for one in order],
        rows=[sorted(rows_of[one]) for one in order],
        places=places,
        contradicting=sorted(row for one in rows_of.keys() - kept for row in rows_of[one]),
        links=links,
    )


@dataclass(frozen=True)
class _Merged:
    """Merged lists, numbered by one of the lists that each was merged from.

    Attributes:
        lists: merged lists by number.
        members: number of each merged list, and the lists that it was merged from.
        begins: for each original list, the position in the merged list at which it begins.
        conflicts: pairs of merged lists that are linked but disagree.
    """

    lists: dict[int, list[int]]
    members: list[tuple[int, list[int]]]
    begins: list[int]
    conflicts: list[tuple[int, int]]


def _merge_linked(lists: Lists, links: Links) -> _Merged:
    """Merge linked lists, the longest overlaps first."""
    merged = {number: list(items) for number, items in enumerate(lists)}
    members = {number: [number] for number in merged}
    of, begins = list(merged), [0] * len(merged)
    conflicts: list[tuple[int, int]] = []
    for at in np.lexsort([links.second, links.first, -links.overlap]).tolist():
        first, second = int(links.first[at]), int(links.second[at])
        kept, joined = of[first], of[second]
        if kept == joined:
            continue
        # position in the first merged list at which the second one begins
        shift = begins[first] + int(links.offset[at]) - begins[second]
        if len(members[kept]) < len(members[joined]):
            kept, joined, shift = joined, kept, -shift
        union = _join(merged[kept], merged[joined], shift)
        if union is None:
            conflicts.append((first, second))
            continue
        for number in members[kept]:
            begins[number] += max(-shift, 0)
        for number in members[joined]:
            begins[number] += max(shift, 0)
            of[number] = kept
        merged[kept] = union
        members[kept] += members.pop(joined)
        del merged[joined]
    still = [(of[first], of[second]) for first, second in conflicts if of[first] != of[second]]
    return _Merged(merged, list(members.items()), begins, still)


def _join(first: list[int], second: list[int], shift: int) -> list[int] | None:
    """Join two lists, the second beginning at position `shift` of the first; None: they differ."""
    if shift < 0:
        first, second, shift = second, first, -shift
    overlap = min(len(first) - shift, len(second))
    if first[shift : shift + overlap] != second[:overlap]:
        return None
    return first + second[overlap:]


def _joined_by_key(
    rows: Lists, keys: Sequence[Hashable]
) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Join the rows of each key: the lists, their rows, and each row's positions in its list."""
    owners = [("row", row) if key is None else ("key", key) for row, key in enumerate(keys)]
    # renumber items per key: rows of one key need only one shared title to be linked
    numbers: dict[tuple[Hashable, int], int] = {}
    items = [
        [numbers.setdefault((owner, item), len(numbers)) for item in row]
        for owner, row in zip(owners, rows, strict=True)
    ]
    merged = _merge_linked(items, find_links(items, min_overlap=1))
    lists: dict[Hashable, list[int]] = {}
    members: dict[Hashable, list[int]] = {}
    places: list[list[int]] = [[] for _ in rows]
    for number, its_rows in sorted(merged.members, key=lambda member: min(member[1])):
        piece, owner = merged.lists[number], owners[its_rows[0]]
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
            begin = merged.begins[row]
            places[row] = at[begin : begin + len(rows[row])]
    original = [item for _, item in numbers]  # keys are in the order of their numbers
    return (
        [[original[number] for number in one] for one in lists.values()],
        list(members.values()),
        places,
    )
